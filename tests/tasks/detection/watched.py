"""Short detections with settings that are nobody's default."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.tasks.detection.detect import detect
from mgd_ssl.tasks.detection.detection import Detection
from tests.tasks.detection.shapes import write_shapes
from tests.tasks.watched import KnownRuns, Seen


class Runs(KnownRuns):
    """Runs of `detect`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, detect, Detection)
        self.root, self.damaged = folder / "coco", folder / "damaged"
        write_shapes(self.root, "train", 14, seed=0)
        write_shapes(self.root, "val", 3, seed=1)
        write_shapes(self.damaged, "train", 25, seed=2)
        write_shapes(self.damaged, "val", 2, seed=3)
        (self.damaged / "train2017" / f"{7:012d}.jpg").write_bytes(b"no image")
        self.backbone = folder / "backbone.pt"
        network = build_backbone("thin_resnet10")
        generator = torch.Generator().manual_seed(5)
        for name, value in network.state_dict().items():
            if name.endswith("running_mean"):
                value.uniform_(-0.1, 0.1, generator=generator)
        torch.save(network.state_dict(), self.backbone)
        trained = {"norm": "batch", "frozen_stages": 0, "pyramid_channels": 16}
        self.teacher = folder / "teacher"
        detect(**self.plainly("teacher", student="thin_resnet14", network=trained, optim={"steps": 2, "batch_size": 4}))

    def plainly(self, name: str, **changes: Any) -> dict[str, Any]:
        """Settings of a run of seconds; what is not given is as it is by default."""
        return {
            "out": self.folder / name,
            "student": "thin_resnet10",
            "data": {"root": self.root, "train_sides": (48, 64), "val_side": 48, "longest_side": 96, "workers": 0},
            "network": {"pyramid_channels": 16},
            "optim": {"steps": 4, "batch_size": 4},
            "runtime": {"threads": 1, "device": "cpu"},
            **changes,
        }

    def settings(self, name: str) -> dict[str, Any]:
        damaged = self.damaged
        named: dict[str, dict[str, Any]] = {"plain": {"teacher": self.teacher}}
        named["odd"] = {
            "student": None, "backbone": self.backbone, "teacher": self.teacher, "seed": 11, "evaluate_every": 4,
            "teacher_mean": (0.2, 0.3, 0.4), "teacher_std": (0.5, 0.6, 0.7),
            "data": {
                "train_images": damaged / "train2017", "val_images": damaged / "val2017",
                "train_annotations": damaged / "annotations" / "instances_train2017.json",
                "val_annotations": damaged / "annotations" / "instances_val2017.json",
                "train_sides": (40, 56), "val_side": 40, "longest_side": 60, "workers": 0, "max_unreadable": 0.05,
                "background": "#102030", "max_pixels": 12345,
            },
            "network": {
                "norm": "batch", "group_norm_last_blocks": True, "frozen_stages": 2, "pyramid_channels": 24,
                "norm_heads": True, "loss_normaliser": "image",
            },
            "mgd": {
                "weight": 1e-7, "stage_weights": (1.0, 0.0, 3.0, 7.0), "reducer": "max", "margin": "measured",
                "padding": "mask", "matching_images": 7, "matching_at": (0.5,),
            },
            "optim": {
                "steps": 6, "batch_size": 5, "lr": 0.002, "momentum": 0.5, "nesterov": False, "weight_decay": 0.25,
                "milestones": (0.5, 0.8), "warmup": 0.34,
            },
            "checkpoint": {"every_steps": 4, "keep": 2},
            "runtime": {"threads": 1, "device": "cpu", "log_every": 4},
        }  # fmt: skip
        named["other"] = {
            "teacher": self.teacher,
            "network": {"kind": "faster_rcnn", "norm": "group", "frozen_stages": 0, "pyramid_channels": 16},
            "mgd": {"margin": "initial", "padding": "include"},
            "runtime": {
                "threads": 1, "device": "cpu", "precision": "bfloat16", "channels_last": False, "compile": True,
            },
        }  # fmt: skip
        return self.plainly(name, **named[name])

    def detector_of(self, seen: Seen) -> dict[str, Tensor]:
        """What a finished run left."""
        state: dict[str, Tensor] = torch.load(seen.out / "encoder.pt", weights_only=True)
        return state

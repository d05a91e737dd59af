"""Short classifications with settings that are nobody's default."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.tasks.classification import Classification
from mgd_ssl.tasks.classify import classify
from tests.conftest import write_images
from tests.tasks.watched import KnownRuns

CLASSES = ("ash", "birch", "cedar")


class Runs(KnownRuns):
    """Runs of `classify`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, classify, Classification)
        self.images, self.damaged = folder / "images", folder / "damaged"
        for root, split, count in (
            (self.images, "train", 8), (self.images, "val", 3), (self.damaged, "train", 12), (self.damaged, "val", 2),
        ):  # fmt: skip
            for label, name in enumerate(CLASSES):
                write_images(root / split / name, count, seed=10 * label + count)
        for broken in (self.damaged / "train" / "birch").glob("0*.jpg"):
            if broken.stem in ("0003", "0004"):
                broken.write_bytes(b"no image")
        self.teacher, self.margins = folder / "teacher.pt", folder / "margins.pt"
        self.weights = folder / "weights.pt"
        for path, arch, classes in (
            (self.teacher, "thin_resnet14", 3), (self.margins, "thin_resnet14", 3), (self.weights, "thin_resnet10", 5),
        ):  # fmt: skip
            network, generator = build_backbone(arch, classes), torch.Generator().manual_seed(len(path.name))
            for name, value in network.state_dict().items():
                if name.endswith(("running_mean", "bias")):
                    value.uniform_(-0.2, 0.2, generator=generator)
            network.get_parameter("fc.weight").data.mul_(30)  # softened logits differ from temperature to temperature
            torch.save(network.state_dict(), path)

    def plainly(self, name: str, **changes: Any) -> dict[str, Any]:
        """Settings of a run of seconds; what is not given is as it is by default."""
        return {
            "out": self.folder / name,
            "student": "thin_resnet10",
            "data": {"train": self.images / "train", "val": self.images / "val", "image_size": 32, "workers": 0},
            "optim": {"epochs": 2, "batch_size": 8},
            "runtime": {"threads": 1, "device": "cpu"},
            **changes,
        }

    def settings(self, name: str) -> dict[str, Any]:
        damaged, taps = self.damaged, ("layer2.0.relu", "layer3.0.relu")
        named: dict[str, dict[str, Any]] = {"plain": {"teacher": self.teacher}}
        named["odd"] = {
            "student": None, "student_weights": self.weights, "teacher": self.teacher, "num_classes": 3, "seed": 11,
            "teacher_mean": (0.2, 0.3, 0.4), "teacher_std": (0.5, 0.6, 0.7),
            "data": {
                "train": damaged / "train", "val": damaged / "val", "image_size": 40, "crop_scale": (0.5, 0.6),
                "share_of_labels": 0.75, "workers": 0, "max_unreadable": 0.2, "background": "#102030",
                "max_pixels": 12345,
            },
            "mgd": {
                "weight": 3e-3, "stage_weights": (1.0, 0.2, 0.3, 0.7), "reducer": "max", "margin": "measured",
                "matching_images": 7, "matching_epochs": (1,), "drop_remainder": True,
            },
            "kd": {"weight": 0.5, "temperature": 3.0},
            "optim": {
                "epochs": 4, "batch_size": 9, "lr": 0.05, "momentum": 0.6, "nesterov": False, "weight_decay": 3e-3,
                "decay_norms": False, "lr_schedule": "milestones", "milestones": (2, 3), "lr_factor": 0.3,
                "warmup_epochs": 1, "label_smoothing": 0.2, "mixup": 0.4, "ema": 0.7,
            },
            "checkpoint": {"every_steps": 2, "keep": 3},
            "runtime": {"threads": 1, "device": "cpu", "log_every": 3},
        }  # fmt: skip
        named["other"] = {
            "teacher": self.teacher, "taps": taps, "teacher_taps": taps,
            "mgd": {"margin": "teacher", "margins_from": self.margins, "matching_every": 2},
            "optim": {"epochs": 3, "batch_size": 8, "lr_schedule": "poly", "lr_power": 2.0},
            "runtime": {
                "threads": 1, "device": "cpu", "precision": "bfloat16", "channels_last": False, "compile": True,
            },
        }  # fmt: skip
        return self.plainly(name, **named[name])

    def crops(self, name: str) -> np.ndarray:
        """[steps, N, H, W, 3] pixels of all steps of a run."""
        return np.stack([batch.images.numpy() for batch in self(name).batches])

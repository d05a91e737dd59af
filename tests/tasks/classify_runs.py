"""Settings of runs of `mgd-ssl classify` that take seconds, and what such a run leaves."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import functional as TF

from mgd_ssl.networks.backbones import build_backbone


def settings(photographs: Path, out: Path, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "out": out,
        "student": "thin_resnet10",
        "data": {"train": photographs / "train", "val": photographs / "val", "image_size": 32, "workers": 0},
        "mgd": {"matching_images": 16},
        "optim": {"epochs": 3, "batch_size": 16, "lr": 0.01},
        "checkpoint": {"keep": 3},
        "runtime": {"log_every": 1, "threads": 1, "device": "cpu"},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and key in base else value
    return base


def guided(teacher: Path, **changes: Any) -> dict[str, Any]:
    return {"teacher": teacher, "kd": {"weight": 1.0}, "mgd": {"matching_images": 16, "matching_every": 2}, **changes}


@torch.no_grad()
def recomputed(photographs: Path, encoder: Path) -> float:
    """Top-1 with nothing of the project but the network."""
    network = build_backbone("thin_resnet10", 3).eval()
    network.load_state_dict(torch.load(encoder, weights_only=True))
    right = 0
    for label, name in enumerate(("ash", "birch", "cedar")):
        for path in (photographs / "val" / name).iterdir():
            image = TF.center_crop(TF.resize(Image.open(path).convert("RGB"), [37]), [32, 32])
            pixels = TF.normalize(TF.to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            right += int(network(pixels[None]).argmax()) == label
    return 100 * right / 15

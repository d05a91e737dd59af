"""Runs and protocols of seconds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.run.checkpoint import serialised

BASE: dict[str, Any] = {
    "name": "small", "version": 1, "features": "cached", "standardise": True, "epochs": 3, "batch_size": 8,
    "lrs": [0.01, 0.1, 1.0], "weight_decays": [0.0, 1e-3], "momentum": 0.9, "schedule": "cosine", "init": "normal",
    "held_out": 0.25, "rounds": [{"heads": 6, "epochs": 1}, {"heads": 2, "epochs": 1.5}],
}  # fmt: skip
LIVE: dict[str, Any] = BASE | {
    "name": "small_live", "features": "live", "standardise": False, "lrs": [0.5], "weight_decays": [0.0],
    "schedule": "steps", "milestones": [1, 2], "decay": 0.1, "held_out": 0.0, "rounds": [],
}  # fmt: skip


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def write_protocol(path: Path, values: dict[str, Any]) -> Path:
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in values.items()))
    return path


def weights(path: Path, seed: int = 0, arch: str = "thin_resnet10") -> Path:
    """A plain state dict of a backbone whose BatchNorms have seen data."""
    torch.manual_seed(seed)
    backbone = build_backbone(arch)
    backbone.train()(torch.randn(16, 3, 48, 48))
    path.write_bytes(serialised(backbone.state_dict()))
    return path


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    return weights(tmp_path / "weights.pt")


@pytest.fixture
def settings(tmp_path: Path, weights_file: Path, image_folder: Path) -> dict[str, Any]:
    """A search on cached features; `settings["protocol"]` is a file."""
    return {
        "checkpoint": weights_file,
        "data": image_folder,
        "out": tmp_path / "out",
        "protocol": str(write_protocol(tmp_path / "small.toml", BASE)),
        "image_size": 32,
        "workers": 0,
        "runtime": {"device": "cpu", "threads": 1},
    }


@pytest.fixture
def live_settings(tmp_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One head on live features."""
    return settings | {"protocol": str(write_protocol(tmp_path / "live.toml", LIVE))}

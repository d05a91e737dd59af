"""Shared fixtures: few threads, small image folders, thin settings."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.runs import trained_teacher

# a shell starts jobs in the background with SIGINT ignored and nohup with SIGHUP; these tests would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.set_num_threads(1)  # tests run side by side on few cores
os.environ.setdefault("MGD_SSL_CORES", "1")  # and so do the runs they start


def write_images(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (40, 36)) -> list[Path]:
    """Smooth random JPEG files `0000.jpg`, ... below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        pixels = np.random.default_rng([seed, i]).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        path = folder / f"{i:04d}.jpg"
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, quality=92)
        paths.append(path)
    return paths


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for a real Slurm begins first: the other workers are busy meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_slurm.py")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/<class>/*.jpg` (48 images) and `val/<class>/*.jpg` (12), two classes."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 24), ("val", 6)):
        for label, name in enumerate(("circles", "squares")):
            write_images(root / split / name, count, seed=10 * label + count)
    return root


@pytest.fixture
def small_settings(image_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a run of seconds; keyword arguments (groups as dictionaries) are merged over them."""

    def settings(**changes: Any) -> dict[str, Any]:
        base: dict[str, Any] = {
            "out": tmp_path / "run",
            "student": "thin_resnet10",
            "data": {"train": image_folder / "train", "image_size": 48, "workers": 0},
            "moco": {"queue_size": 64, "dim": 16},
            "mgd": {"matching_images": 16},
            "optim": {"epochs": 2, "batch_size": 16, "warmup_epochs": 1},
            "runtime": {"log_every": 1, "threads": 1, "device": "cpu"},
        }
        for key, value in changes.items():
            base[key] = {**base[key], **value} if isinstance(value, dict) and key in base else value
        return base

    return settings


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cached files are kept in a folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache_home"))
    return tmp_path / "cache_home"


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    return trained_teacher(tmp_path_factory.getbasetemp(), image_folder)

"""A student alone, with KD, with MGD and with both, on the demo's textures: the table of docs/supervised.md.

    python -m benchmarks.supervised --out study

A teacher is trained for every seed on the labels the students learn from; all students of a seed begin with the same
weights and see the same crops. The last epoch counts, not the best. Runs that are there already are not made again.
"""

import statistics
from pathlib import Path
from typing import Any

import tyro
from pydantic import Field
from rich.table import Table

from mgd_ssl.bench.tables import show
from mgd_ssl.demo.textures import TEXTURES, ImageSet
from mgd_ssl.settings import Settings
from mgd_ssl.tasks.classify import classify

TEACHER, STUDENT = "thin_resnet14", "thin_resnet10"


class Config(Settings):
    """How long, and on how many images."""

    out: Path = Path("study")
    """Folder of images and runs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each draws its images, its teacher's and its students' weights."""
    train_per_class: int = Field(40, ge=1)
    """Training images of each of the 16 textures."""
    val_per_class: int = Field(50, ge=1)
    """Validation images of each."""
    teacher_epochs: int = Field(40, ge=1)
    """Length of the teacher's training."""
    epochs: int = Field(10, ge=1)
    """Length of a student's training."""
    mgd_weight: float = Field(1e-2, gt=0)
    """Factor of MGD; the published 1e-4 is for sums over maps of 224 pixels."""
    kd_weight: float = Field(1.0, gt=0)
    """Factor of KD."""
    guided: tuple[str, ...] = ("alone", "kd", "mgd_amp", "mgd_max", "mgd_sparse", "mgd_amp_kd")
    """Students."""


def main(config: Config) -> None:
    """Print a table of means and deviations, and the same as JSON on the last line."""
    top1: dict[str, list[float]] = {name: [] for name in ("teacher", *config.guided)}
    for seed in config.seeds:
        images = config.out / "images" / f"{seed}_{config.train_per_class}_{config.val_per_class}"
        if not images.exists():
            half = images.with_suffix(".half")
            ImageSet(seed, len(TEXTURES), config.train_per_class, config.val_per_class, 48).write(half)
            half.rename(images)
        for name, found in top1.items():
            found.append(classify(**settings(config, images, seed, name)).validation["top1"])
    table = Table("", "top-1, last epoch", "difference to alone")
    result: dict[str, Any] = {}
    for name, found in top1.items():
        gains = [ours - alone for ours, alone in zip(found, top1.get("alone", found), strict=True)]
        table.add_row(name, told(found), "" if name in ("teacher", "alone") else told(gains))
        result[name] = {"top1": found, "mean": statistics.mean(found)}
    show(table, result)


def told(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def settings(config: Config, images: Path, seed: int, name: str) -> dict[str, Any]:
    """Of one run; `name` says how it is guided."""
    runs = config.out / "runs"
    teacher = runs / f"teacher_{config.teacher_epochs}_{seed}"
    long = name == "teacher"
    reducer = next((part for part in ("amp", "max", "sparse") if f"mgd_{part}" in name), None)
    lengths = str(config.epochs) + (f"_{config.mgd_weight:g}" if reducer else "")
    return {
        "out": teacher if long else runs / f"{name}_{lengths}_{seed}",
        "student": TEACHER if long else STUDENT,
        "teacher": teacher if reducer or name.endswith("kd") else None,
        "seed": seed,
        "data": {
            "train": images / "train",
            "val": images / "val",
            "image_size": 48,
            "crop_scale": (0.3, 1.0),
            "workers": 0,
        },
        "mgd": {"weight": config.mgd_weight if reducer else 0.0, "reducer": reducer or "amp", "matching_every": 2},
        "kd": {"weight": config.kd_weight if name.endswith("kd") else 0.0},
        "optim": {
            "epochs": config.teacher_epochs if long else config.epochs,
            "batch_size": 32,
            "lr": 0.05,
            "lr_schedule": "cosine",
            "warmup_epochs": 1,
        },
        "runtime": {"device": "cpu", "threads": 1},
    }


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.supervised"))

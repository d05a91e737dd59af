"""Detectors on a procedural set: alone, guided by MGD, and begun from a self-supervised backbone; docs/detection.md.

`python -m benchmarks.detection FOLDER [alone mgd backbone]` trains what is missing of these and prints the table of
what is there. The set: benchmarks/detection_set.py.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.detection_set import EDGE, write
from mgd_ssl import pretrain
from mgd_ssl.files import read_json
from mgd_ssl.tasks.detection.detect import detect

SEEDS = (0, 1, 2)
STEPS = 500
STUDENT, TEACHER = "thin_resnet10", "thin_resnet14"
ARMS = ("alone", "mgd", "backbone")
RUNTIME = {"device": "cpu", "threads": 1, "log_every": 50}


def settings(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    """What all detectors of the study have in common: everything is trained, from 8 images a step."""
    data = {"root": folder / "set", "train_sides": (EDGE,), "val_side": EDGE, "longest_side": EDGE, "workers": 0}
    return {
        "out": folder / name,
        "data": data,
        "network": {"norm": "batch", "frozen_stages": 0, "pyramid_channels": 48, "norm_heads": True},
        "optim": {"steps": STEPS, "batch_size": 8, "lr": 0.02},
        "runtime": RUNTIME,
        **more,
    }


def train(folder: Path, arm: str, seed: int) -> None:
    """One detector of an arm."""
    how: dict[str, Any] = {"student": STUDENT, "seed": seed}
    if arm == "mgd":
        how |= {"teacher": folder / "teacher", "mgd": {"weight": 1e-6, "matching_images": 200}}
    if arm == "backbone":
        how |= {"student": None, "backbone": folder / "pretrained"}
    detect(**settings(folder, f"{arm}_{seed}", **how))


def main(folder: Path, arms: list[str]) -> None:
    """Train and print."""
    if not (folder / "set").exists():
        write(folder / "set")
    if "mgd" in arms:
        detect(**settings(folder, "teacher", student=TEACHER))
    if "backbone" in arms:
        pretrain(
            out=folder / "pretrained", student=STUDENT, runtime=RUNTIME, moco={"queue_size": 256, "dim": 64},
            data={"train": folder / "set" / "train2017", "image_size": EDGE, "workers": 0},
            optim={"epochs": 20, "batch_size": 32, "lr": 0.06},
        )  # fmt: skip
    for seed in SEEDS:
        for arm in arms:
            train(folder, arm, seed)
    table(folder)


def table(folder: Path) -> None:
    """Mean and standard deviation over the seeds that are there."""
    print("| run | AP | AP50 | AP75 | seeds |\n|---|---|---|---|---|")
    for name in ("teacher", *ARMS):
        runs = sorted(folder.glob(f"{name}*/result.json"))
        if not runs:
            continue
        found = [read_json(run)["average_precision"] for run in runs]
        cells = []
        for number in ("AP", "AP50", "AP75"):
            values = [each[number] for each in found]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}")
        print(f"| {name} | {' | '.join(cells)} | {len(runs)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(ARMS))

"""Detectors on a procedural set: alone, guided by MGD, and begun from other networks' backbones; docs/detection.md.

`python -m benchmarks.detection FOLDER [ARM ...]` trains what is missing of these arms and prints the table of what is
there. The set: benchmarks/detection_set.py.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.detection_set import EDGE, write, write_labelled
from mgd_ssl import classify, pretrain
from mgd_ssl.files import read_json
from mgd_ssl.tasks.detection.detect import detect

SEEDS = (0, 1, 2)
STEPS, TEACHER_STEPS = 600, 1500
STUDENT, TEACHER = "thin_resnet10", "thin_resnet14"
RUNTIME = {"device": "cpu", "threads": 1, "log_every": 50}
ARMS = {  # and what each is in the table
    "alone": "alone",
    "mgd": "guided, padding counted",
    "mgd_mask": "guided, padding masked",
    "backbone": "from the self-supervised backbone",
    "supervised": "from the supervised backbone",
}


def settings(folder: Path, name: str, steps: int, **more: Any) -> dict[str, Any]:
    """What all detectors of the study have in common: everything is trained, from 8 images a step."""
    data = {"root": folder / "set", "train_sides": (EDGE,), "val_side": EDGE, "longest_side": EDGE, "workers": 0}
    return {
        "out": folder / name,
        "data": data,
        "network": {"norm": "batch", "frozen_stages": 0, "pyramid_channels": 48, "norm_heads": True},
        "optim": {"steps": steps, "batch_size": 8, "lr": 0.01},
        "runtime": RUNTIME,
        **more,
    }


def train(folder: Path, arm: str, seed: int) -> None:
    """One detector of an arm."""
    how: dict[str, Any] = {"student": STUDENT, "seed": seed}
    if arm.startswith("mgd"):
        padding = "mask" if arm == "mgd_mask" else "include"
        mgd = {"weight": 1e-6, "matching_images": 200, "padding": padding}
        how |= {"teacher": folder / "teacher", "mgd": mgd}
    if arm in ("backbone", "supervised"):
        how |= {"student": None, "backbone": folder / f"begin_{arm}"}
    detect(**settings(folder, f"{arm}_{seed}", STEPS, **how))


def prepare(folder: Path, arms: list[str]) -> None:
    """What the arms begin with: the images, the teacher, and backbones."""
    if not (folder / "set").exists():
        write(folder / "set")
    if any(arm.startswith("mgd") for arm in arms):
        detect(**settings(folder, "teacher", TEACHER_STEPS, student=TEACHER))
    if "backbone" in arms:
        pretrain(
            out=folder / "begin_backbone", student=STUDENT, runtime=RUNTIME, moco={"queue_size": 256, "dim": 64},
            data={"train": folder / "set" / "train2017", "image_size": EDGE, "workers": 0},
            optim={"epochs": 30, "batch_size": 32, "lr": 0.06},
        )  # fmt: skip
    if "supervised" in arms:
        labelled = folder / "labelled"
        if not labelled.exists():
            write_labelled(labelled)
        classify(
            out=folder / "begin_supervised", student=STUDENT, runtime=RUNTIME,
            data={"train": labelled / "train", "val": labelled / "val", "image_size": 48, "workers": 0},
            optim={"epochs": 20, "batch_size": 32, "lr": 0.05},
        )  # fmt: skip


def main(folder: Path, arms: list[str]) -> None:
    """Train and print."""
    prepare(folder, arms)
    for seed in SEEDS:
        for arm in arms:
            train(folder, arm, seed)
    table(folder)


def table(folder: Path) -> None:
    """Mean and standard deviation over the seeds that are there."""
    print("| run | AP | AP50 | AP75 | difference to alone, AP | seeds |\n|---|---|---|---|---|---|")
    alone = numbers(folder, "alone")
    for name, told in {"teacher": "the teacher", **ARMS}.items():
        found = numbers(folder, name)
        if not found:
            continue
        cells = [shown([each[number] for each in found.values()]) for number in ("AP", "AP50", "AP75")]
        pairs = [] if name in ("teacher", "alone") else sorted(found.keys() & alone.keys())
        gains = [found[seed]["AP"] - alone[seed]["AP"] for seed in pairs]
        print(f"| {told} | {' | '.join(cells)} | {shown(gains, '+')} | {len(found)} |")


def numbers(folder: Path, arm: str) -> dict[str, dict[str, float]]:
    """COCO's numbers of the finished runs of an arm, by seed; the teacher has one run."""
    runs = {seed: folder / f"{arm}_{seed}" / "result.json" for seed in map(str, SEEDS)} | {
        "": folder / arm / "result.json"
    }
    return {seed: read_json(path)["average_precision"] for seed, path in runs.items() if path.exists()}


def shown(values: list[float], sign: str = "") -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.1f}{spread}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(ARMS))

"""Detectors on a procedural set: alone, guided by MGD, and begun from other weights than random; docs/detection.md.

`python -m benchmarks.detection FOLDER [ARM ...]` trains what is missing of these and prints the table of
what is there. The set: benchmarks/detection_set.py.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.detection_set import EDGE, write, write_objects
from mgd_ssl import pretrain
from mgd_ssl.files import read_json
from mgd_ssl.tasks.classify import classify
from mgd_ssl.tasks.detection.detect import detect

SEEDS = tuple(range(6))
STEPS, TEACHERS_STEPS = 400, 1000
STUDENT, TEACHER = "thin_resnet10", "thin_resnet14"
ARMS = {  # and what the table calls them
    "alone": "alone",
    "mgd": "guided, padding counted",
    "mgd_masked": "guided, padding masked",
    "self_supervised": "from the self-supervised backbone",
    "supervised": "from the supervised backbone",
}
PADDING = {"mgd": "include", "mgd_masked": "mask"}
MGD_WEIGHT = 1e-6
RUNTIME = {"device": "cpu", "threads": 1, "log_every": 50}


def settings(folder: Path, name: str, steps: int = STEPS, **more: Any) -> dict[str, Any]:
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
    if arm in PADDING:
        mgd = {"weight": MGD_WEIGHT, "matching_images": 200, "padding": PADDING[arm]}
        how |= {"teacher": folder / "teacher", "mgd": mgd}
    if arm.endswith("supervised"):
        how |= {"student": None, "backbone": folder / f"{arm}_backbone"}
    detect(**settings(folder, f"{arm}_{seed}", **how))


def begin(folder: Path, arms: list[str]) -> None:
    """The set, and what some arms begin with or are taught by."""
    if not (folder / "set").exists():
        write(folder / "set")
        write_objects(folder / "objects", 100)
    if PADDING.keys() & set(arms):
        detect(**settings(folder, "teacher", TEACHERS_STEPS, student=TEACHER))
    if "self_supervised" in arms:
        pretrain(
            out=folder / "self_supervised_backbone", student=STUDENT, runtime=RUNTIME,
            moco={"queue_size": 256, "dim": 64, "momentum": 0.99},
            data={"train": folder / "set" / "train2017", "image_size": EDGE, "blur_sigma": (0.03, 0.6), "workers": 0},
            optim={"epochs": 40, "batch_size": 32, "lr": 0.06, "warmup_epochs": 2},
        )  # fmt: skip
    if "supervised" in arms:
        objects = folder / "objects"
        classify(
            out=folder / "supervised_backbone", student=STUDENT, runtime=RUNTIME,
            data={"train": objects / "train", "val": objects / "val", "image_size": EDGE, "workers": 0},
            optim={"epochs": 20, "batch_size": 32, "lr": 0.05, "lr_schedule": "cosine", "warmup_epochs": 1},
        )  # fmt: skip


def main(folder: Path, arms: list[str]) -> None:
    """Train and print."""
    begin(folder, arms)
    for seed in SEEDS:
        for arm in arms:
            train(folder, arm, seed)
    table(folder)


def table(folder: Path) -> None:
    """Mean and standard deviation over the seeds that are there, and what each seed gained."""
    print("| run | AP | AP50 | AP75 | AP less that alone, seed by seed | seeds |\n|---|---|---|---|---|---|")
    alone = numbers(folder, "alone_{}")
    for arm, told in {"teacher": "the teacher", **ARMS}.items():
        found = numbers(folder, "teacher" if arm == "teacher" else arm + "_{}")
        if not found:
            continue
        cells = [shown([each[number] for each in found.values()]) for number in ("AP", "AP50", "AP75")]
        pairs = [] if arm in ("teacher", "alone") else sorted(found.keys() & alone.keys())
        gains = [found[seed]["AP"] - alone[seed]["AP"] for seed in pairs]
        count = 1 if arm == "teacher" else len(found)
        print(f"| {told} | {' | '.join(cells)} | {shown(gains, '+')} | {count} |")


def numbers(folder: Path, name: str) -> dict[int, dict[str, float]]:
    """COCO's numbers of the finished runs that are called so, by seed."""
    files = {seed: folder / name.format(seed) / "result.json" for seed in (SEEDS if "{" in name else SEEDS[:1])}
    return {seed: read_json(file)["average_precision"] for seed, file in files.items() if file.exists()}


def shown(values: list[float], sign: str = "") -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.1f}{spread}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(ARMS))

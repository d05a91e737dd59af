"""Each term alone, beside MoCo and beside MGD: the tables of docs/terms.md.

    python -m benchmarks.terms OUT [--seeds 3] [--epochs 5]                        # on the demo's images
    python -m benchmarks.terms OUT --pictures --epochs 6 --teachers 24 3           # on real pictures (real_pictures.py)
    python -m benchmarks.terms OUT --only "MoCo + MGD" "MoCo + MGD, cosine" ...    # some rows of them

A run that is there already is not repeated; the table is made of all that are there.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_pictures import fetch
from mgd_ssl import pretrain
from mgd_ssl.demo.textures import ImageSet

SIZE = 48
QUEUE = {"queue_size": 256}
ALONE = {"moco": {"weight": 0.0}, "mgd": {"weight": 0.0}}
MGD = 1e-2
SEED = {"seed": {"weight": 1.0, "teacher_temperature": 0.07, **QUEUE}}
SIMREG = {"simreg": {"weight": 4.0}}
COMPRESS = {"compress": {"weight": 1.0, **QUEUE}}
DISCO = {"disco": {"weight": 1.0}}


def only(**terms: Any) -> dict[str, Any]:
    """Terms beside MoCo, without MGD."""
    return {"mgd": {"weight": 0.0}, "terms": terms}


def alone(**terms: Any) -> dict[str, Any]:
    """Terms and nothing else."""
    return {**ALONE, "terms": terms}


COSINE = {"weight": MGD, "schedule": "cosine"}
STRONG: dict[str, dict[str, Any]] = {
    "MoCo": {"teacher": None},
    "MoCo + MGD": {"mgd": {"weight": MGD}},
    "MoCo + MGD, cosine": {"mgd": COSINE},
    "MoCo + CompRess": only(**COMPRESS),
    "CompRess": alone(**COMPRESS),
    "MoCo + SimReg": only(**SIMREG),
    "SimReg": alone(**SIMREG),
    "MoCo + SEED": only(**SEED),
    "SEED": alone(**SEED),
    "MoCo + MGD + CompRess": {"mgd": {"weight": MGD}, "terms": COMPRESS},
    "MoCo + DisCo": only(**DISCO),
}
WEAK: dict[str, dict[str, Any]] = {
    "MoCo + MGD": {"mgd": {"weight": MGD}},
    "MoCo + MGD, cosine": {"mgd": COSINE},
    "MoCo + MGD, balance 0.5": {"mgd": {"weight": MGD, "balance": 0.5}},
    "MoCo + MGD, balance 0.5, cosine": {"mgd": {**COSINE, "balance": 0.5}},
    "MoCo + CompRess": only(**COMPRESS),
    "MoCo + CompRess, cosine": only(compress={**COMPRESS["compress"], "schedule": "cosine"}),
}


PICTURES: dict[str, dict[str, Any]] = {  # settings of real pictures, of which there are five times as many
    "moco": {"queue_size": 2048},
    "mgd": {"matching_images": 1000},
    "optim": {"batch_size": 64, "lr": 0.06},
    "knn": {"every_epochs": 2},
}


def settings(images: Path, out: Path, epochs: int, seed: int, **changes: Any) -> dict[str, Any]:
    """Those of the demo, and changes of them."""
    base: dict[str, Any] = {
        "out": out, "student": "thin_resnet10", "seed": seed,
        "data": {"train": images / "train", "image_size": SIZE, "blur_sigma": (0.1 * SIZE / 224, 2.0 * SIZE / 224)},
        "moco": {"queue_size": 256, "momentum": 0.99, "temperature": 0.1},
        "mgd": {"matching_images": 512},
        "terms": {},
        "optim": {"epochs": epochs, "batch_size": 32, "warmup_epochs": 0.05 * epochs},
        "knn": {"train": images / "train", "val": images / "val", "every_epochs": 1000},
        "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
    return base


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Changes of settings, and changes of those."""
    both = {**one, **other}
    return both | {key: {**one[key], **other[key]} for key in one.keys() & other.keys() if isinstance(one[key], dict)}


def teacher_of(images: Path, out: Path, epochs: int, changes: dict[str, Any]) -> Path:
    """Checkpoint, with its head, of a teacher trained so long."""
    pretrain(**settings(images, out, epochs, 0, **merged(changes, {"student": "thin_resnet14"})))
    return max((out / "checkpoints").glob("*.pt"))


def measured(out: Path) -> tuple[float, float, float]:
    """k-NN top-1 of the student and of its teacher (nan without), and images a second of a finished run."""
    result = json.loads((out / "result.json").read_text())["knn"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    speed = np.median([row["images_per_second"] for row in rows if row["kind"] == "train"])
    return result["top1"], result.get("teacher_top1", np.nan), float(speed)


def main() -> None:
    """Make the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pictures", action="store_true", help="real ones in place of textures")
    parser.add_argument("--only", nargs="+", default=None, help="these rows alone")
    parser.add_argument("--teachers", type=int, nargs=2, default=(12, 2), help="epochs of the strong and the weak one")
    args = parser.parse_args()
    images, usual = args.out / "images", PICTURES if args.pictures else {}
    if args.pictures:
        fetch(images)
    elif not images.exists():
        ImageSet(seed=0, size=SIZE).write(images)
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    teachers = [teacher_of(images, args.out / f"teacher{epochs}", epochs, usual) for epochs in args.teachers]
    for seed in range(args.seeds):
        for strength, teacher, runs in (("strong", teachers[0], STRONG), ("weak", teachers[1], WEAK)):
            for name, changes in runs.items():
                if args.only is not None and name not in args.only:
                    continue
                out = args.out / f"{strength}_{name.replace(' ', '')}_{args.epochs}_{seed}"
                pretrain(**settings(images, out, args.epochs, seed, **merged(usual, {"teacher": teacher, **changes})))
                found.setdefault((strength, name), []).append(measured(out))
    print("| teacher | terms | k-NN top-1 | each seed | teacher | images/s |\n| --- | --- | --- | --- | --- | --- |")
    for (strength, name), values in found.items():
        top, taught, speed = np.array(values).T
        each = ", ".join(f"{value:.1f}" for value in top)
        mean = f"{top.mean():.1f} ± {top.std(ddof=1) if len(top) > 1 else 0:.1f}"
        told = f"{np.nanmean(taught):.1f}" if not np.isnan(taught).all() else ""
        print(f"| {strength} | {name} | {mean} | {each} | {told} | {np.median(speed):.0f} |")


if __name__ == "__main__":
    main()

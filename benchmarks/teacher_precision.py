"""What a teacher loses in bfloat16 and in 8 bits: cosine of its maps and k-NN, on the demo's teachers.

Trains the demo's teacher for every seed, or takes those that are finished in --out:
`python -m benchmarks.teacher_precision --out FOLDER [--seeds 0 1 2]`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from mgd_ssl.data.order import subset
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.data.sources import open_images
from mgd_ssl.data.upload import Upload
from mgd_ssl.demo.study import Entrant, image_set, settings
from mgd_ssl.networks.int8 import int8_teacher, seen_ranges
from mgd_ssl.networks.low_precision import half_teacher
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.tasks.pretraining import CALIBRATION_IMAGES
from mgd_ssl.tasks.student import pretrain

SIZE, K = 48, 20
CPU = Runtime(torch.device("cpu"), None, torch.channels_last, 1)


def main(out: Path = Path("teacher_precision"), seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Train what is not there yet, and print a line of JSON a seed.

    Args:
        out: folder of images and runs.
        seeds: of the demo.
    """
    torch.set_num_threads(1)
    for seed in seeds:
        images = image_set(out / "images" / f"seed{seed}", seed, SIZE, Console())
        folder = out / "runs" / f"short_seed{seed}"
        encoder = folder / "teacher" / "encoder.pt"
        if not encoder.exists():
            of_run = settings(Entrant("teacher", "thin_resnet14", 12), images, folder, seed, "cpu")
            pretrain(**of_run | {"runtime": {"device": "cpu", "threads": 1}})
        print(json.dumps({"seed": seed, **compared_with_float32(encoder, images, seed)}), flush=True)


@torch.no_grad()
def compared_with_float32(encoder: Path, images: Path, seed: int) -> dict[str, object]:
    """Mean cosine of every stage's maps on the validation images, and k-NN top-1 in percent, by precision."""
    train, val = (open_images(images / split) for split in ("train", "val"))
    bank, asked = (pixels(each, np.arange(len(each)), seed) for each in (train, val))
    labels, truth = (torch.from_numpy(np.asarray(each.labels()[0])) for each in (train, val))
    teacher = Teacher.load(encoder)
    teacher.fold()
    teacher.to(memory_format=torch.channels_last)
    calibration = bank[subset(len(train), CALIBRATION_IMAGES, seed, "calibration")]
    half, eighth = half_teacher(teacher, torch.bfloat16), int8_teacher(teacher, seen_ranges(teacher, [calibration]))

    def in_half(images: Tensor) -> tuple[list[Tensor], Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return half.watched(images)

    looks: dict[str, Callable[[Tensor], tuple[list[Tensor], Tensor]]] = {
        "float32": teacher.watched, "bfloat16": in_half, "int8": eighth.watched,
    }  # fmt: skip
    found: dict[str, object] = {}
    for name, look in looks.items():
        seen, queries = (torch.cat([look(part)[1].float() for part in each.split(200)]) for each in (bank, asked))
        right = top1(seen, queries, labels, truth)
        cosines = [cosine(one, other) for one, other in zip(look(asked)[0], teacher(asked), strict=True)]
        found[name] = {"map_cosine": cosines, "knn_top1": round(100 * right, 2)}
    error = 100 * (right * (1 - right) / len(truth)) ** 0.5
    return found | {"standard_error": round(error, 2)}


def pixels(images: object, indices: np.ndarray, seed: int) -> Tensor:
    """Centre crops as an evaluation sees them, [N, 3, H, W]."""
    crops = CentreCrops(images, SIZE, seed)  # type: ignore[arg-type]
    return Upload(CPU, 2.0).images(crops.__getitems__(indices.tolist()).images)


def cosine(one: Tensor, other: Tensor) -> float:
    """Mean over images of the cosine between their maps, six digits."""
    return round(float(functional.cosine_similarity(one.float().flatten(1), other.flatten(1)).mean()), 6)


def top1(bank: Tensor, asked: Tensor, labels: Tensor, truth: Tensor) -> float:
    """Share whose nearest neighbours vote for their class, weighted by exp(similarity / 0.07)."""
    similarity = functional.normalize(asked) @ functional.normalize(bank).T
    nearest, index = similarity.topk(K)
    votes = torch.zeros(len(asked), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[index], (nearest / 0.07).exp())
    return float((votes.argmax(1) == truth).float().mean())


if __name__ == "__main__":
    tyro.cli(main)

"""The demo's runs: a teacher, then students without and with it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mgd_ssl.demo.config import DemoConfig
from mgd_ssl.demo.results import draw, summarised, write_tables
from mgd_ssl.demo.textures import SPLITS, TEXTURES, ImageSet
from mgd_ssl.files import ELSEWHERE, writing
from mgd_ssl.printable import printable
from mgd_ssl.report.page import write_report
from mgd_ssl.run.read import read_runs
from mgd_ssl.tasks.student import pretrain

NETWORKS = {"cpu": ("thin_resnet14", "thin_resnet10"), "cuda": ("resnet50", "resnet18")}  # teacher, student


IMAGE_SIZE = {"cpu": 48, "cuda": 96}


# The distillation loss is a sum over elements, so small images and thin networks need a larger factor than the
# published 1e-4 at 224 pixels: chosen on the thin networks, scaled by the number of elements for the others.
MGD_WEIGHT = {"cpu": 1e-2, "cuda": 2.5e-3}


TRAIN_PER_CLASS, VAL_PER_CLASS = 150, 50


def study(config: DemoConfig) -> None:
    """Run what is not finished yet, then print and save the table."""
    use_gpu = config.device != "cpu" and torch.cuda.is_available()
    device = "cuda" if use_gpu else "cpu"
    console = Console()
    folders = [folder for seed in seeds(config) for folder in one_seed(config, seed, device, console)]
    runs = read_runs(folders)
    rows = summarised(runs, num_classes=len(TEXTURES))
    first = [run for run in runs if run.seed == config.seed]
    with writing(config.out):
        write_tables(rows, config.out)
        draw(first, config.out / "images" / f"seed{config.seed}" / "val", config.out / "demo.png")
    show(rows, console)
    console.print(explanation(config, device), highlight=False)
    report, *_ = write_report(folders, config.out / "report.html")
    out = escape(printable(config.out))
    console.print(f"Saved: {out}/table.md, table.csv, demo.png; runs in {out}/runs", highlight=False)
    console.print(f"Report on these runs, for a browser: {escape(printable(report))}", highlight=False, soft_wrap=True)


def seeds(config: DemoConfig) -> range:
    """The seeds of this demo."""
    return range(config.seed, config.seed + (3 if config.full else 1))


def one_seed(config: DemoConfig, seed: int, device: str, console: Console) -> Iterator[Path]:
    """Teacher and students of one seed, each through the same `pretrain` as any run; yields where they are."""
    images = image_set(config.out / "images" / f"seed{seed}", seed, IMAGE_SIZE[device], console)
    teacher_arch, student_arch = NETWORKS[device]
    teacher_epochs, student_lengths = (40, (5, 20)) if config.full else (12, (5,))
    folder = config.out / "runs" / f"{'full' if config.full else 'short'}_seed{seed}"

    encoder = folder / "teacher" / "encoder.pt"
    entrants = [Entrant("teacher", teacher_arch, teacher_epochs)]
    for epochs in student_lengths:
        entrants.append(Entrant(f"moco_{epochs}", student_arch, epochs))
        entrants.append(Entrant(f"mgd_{epochs}", student_arch, epochs, encoder))
    for entrant in entrants:
        console.print(f"[bold]{entrant.title}[/bold]", highlight=False)
        pretrain(**settings(entrant, images, folder, seed, device))
        yield folder / entrant.name


@dataclass(frozen=True)
class Entrant:
    """A network of the study."""

    name: str  # of its folder
    arch: str
    epochs: int
    teacher: Path | None = None

    @property
    def title(self) -> str:
        """Said before it is trained."""
        role = "Teacher" if self.name == "teacher" else "Student"
        method = "MoCo v2" if self.teacher is None else "MoCo v2 + MGD"
        return f"{role}: {self.arch}, {method}, {self.epochs} epochs"


def settings(entrant: Entrant, images: Path, folder: Path, seed: int, device: str) -> dict[str, Any]:
    """Settings of one run. Short runs on few images want a short queue: with batch 32 its oldest keys are 8 steps
    old, where stale keys would tell the encoder of now from that of then (docs/demo.md has what was tried)."""
    size, epochs = IMAGE_SIZE[device], entrant.epochs
    return {
        "out": folder / entrant.name,
        "student": entrant.arch,
        "teacher": entrant.teacher,
        "seed": seed,
        "data": {"train": images / "train", "image_size": size, "blur_sigma": (0.1 * size / 224, 2.0 * size / 224)},
        "moco": {"queue_size": 256, "momentum": 0.99, "temperature": 0.1},
        "mgd": {"weight": MGD_WEIGHT[device], "matching_images": 512},
        "optim": {"epochs": epochs, "batch_size": 32, "warmup_epochs": 0.05 * epochs},
        "knn": {"train": images / "train", "val": images / "val", "every_epochs": max(1, epochs // 4)},
        "runtime": {"device": device},
    }


def image_set(folder: Path, seed: int, size: int, console: Console) -> Path:
    """The image set of a seed, made once; a folder that exists is whole."""
    if not folder.exists():
        half = folder.with_name(f"{folder.name}.half")
        shutil.rmtree(half, ignore_errors=True)
        with writing(folder, ELSEWHERE, at_start=True):
            ImageSet(seed, len(TEXTURES), TRAIN_PER_CLASS, VAL_PER_CLASS, size).write(half)
            half.rename(folder)
        count = sum(1 for split in SPLITS for _ in (folder / split).rglob("*.jpg"))
        console.print(f"{count} images of {len(TEXTURES)} classes in {escape(printable(folder))}", highlight=False)
    return folder


def show(rows: Any, console: Console) -> None:
    """The table in the form of the published one."""
    table = Table(title="Frozen features, k-NN accuracy in %")
    for column in rows.columns:
        table.add_column(column, justify="left" if column in ("model", "method") else "right")
    for row in rows.itertuples(index=False):
        table.add_row(*map(str, row))
    console.print(table)


def explanation(config: DemoConfig, device: str) -> str:
    """What these numbers can and cannot show."""
    images = TRAIN_PER_CLASS * len(TEXTURES)
    spread = "mean and standard deviation over three seeds" if config.full else "one seed"
    return (
        f"{images} training images of {len(TEXTURES)} procedural textures, {VAL_PER_CLASS * len(TEXTURES)} validation "
        f"images, {spread}; the standard error of one number is about 1.6 points.\n"
        "This shows that the pipeline works. MoCo alone first falls below random features here and needs more epochs "
        "to pass them. Students of the same epochs have seen equally many images, but a step with a teacher takes "
        "longer. Minutes on textures say nothing about how methods rank after 200 epochs on ImageNet; mgd-ssl pretrain "
        "--config imagenet_r50_r18_mgd is that recipe."
    )

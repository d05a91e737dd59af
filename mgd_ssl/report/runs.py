"""Run folders as the report reads them: nothing is trained, loaded or written here."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mgd_ssl.config import PretrainConfig
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation import Evaluation
from mgd_ssl.weights import sha256_of

Rows = list[dict[str, Any]]
REQUIRED = {
    "train": ("epoch", "loss", "contrastive", "distillation", "accuracy", "lr", "images_per_second", "data_wait"),
    "knn": ("top1", "top5", "protocol"),
    "matching": ("epoch",),
}  # what the report reads of a row of metrics.jsonl; other kinds are not its business


@dataclass(frozen=True)
class Run:
    """A run folder: what was asked for, and what has been measured so far."""

    folder: Path
    name: str  # unique in its report
    config: dict[str, Any]  # as saved, perhaps by another version
    data: dict[str, Any]  # num_images, fingerprint
    teacher: dict[str, Any] | None  # arch, sha256
    environment: dict[str, Any]
    metrics: Rows
    evaluations: dict[str, Evaluation]  # by file name
    finished: bool

    def rows(self, kind: str) -> Rows:
        """Rows of metrics.jsonl of one kind."""
        return [row for row in self.metrics if row["kind"] == kind]

    @property
    def student(self) -> str:
        """Architecture that is trained."""
        return str(self.config["student"])

    @property
    def method(self) -> str:
        """Name of the method in tables."""
        return "MoCo v2" if self.teacher is None else "MoCo v2 + MGD"

    @property
    def seed(self) -> int:
        """Of everything random in the run."""
        return int(self.config["seed"])

    @property
    def epochs(self) -> int:
        """Length it has when it is finished."""
        return int(self.config["optim"]["epochs"])

    @property
    def steps_per_epoch(self) -> int:
        """Steps in a pass over the images."""
        return int(self.data["num_images"]) // int(self.config["optim"]["batch_size"])

    @property
    def total_steps(self) -> int:
        """Steps it has when it is finished."""
        return self.epochs * self.steps_per_epoch

    @property
    def step(self) -> int:
        """Last step that metrics.jsonl knows of."""
        return max(int(row["step"]) for row in self.metrics)

    @property
    def state(self) -> str:
        """`finished`, or how far it is."""
        return "finished" if self.finished else f"unfinished, step {self.step} of {self.total_steps}"

    @property
    def images_per_second(self) -> float | None:
        """Median over the rows, None before the first."""
        speeds = [row["images_per_second"] for row in self.rows("train")]
        return float(np.median(speeds)) if speeds else None

    @property
    def encoder(self) -> Path:
        """File with the trained backbone, there once the run is finished."""
        return self.folder / "encoder.pt"

    @cached_property
    def encoder_hash(self) -> str | None:
        """SHA-256 of `encoder`, by which a run knows its teacher; None before the run is finished."""
        return sha256_of(self.encoder) if self.encoder.is_file() else None

    def settings(self) -> PretrainConfig:
        """Its settings as this version reads them.

        Raises:
            ValueError: when another version wrote them.
        """
        return PretrainConfig(**self.config)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders, each once, in this order.

    Raises:
        UserError: when a folder is missing, holds no run, one without a measurement, or is damaged.
    """
    unique = list({folder.resolve(): folder for folder in folders}.values())
    return [read_run(folder, name) for folder, name in zip(unique, short_names(unique), strict=True)]


def short_names(folders: Sequence[Path]) -> list[str]:
    """As many last parts of every path as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return [os.fsencode(name).decode(errors="replace") for name in names]  # a name may be no text at all


def read_run(folder: Path, name: str) -> Run:
    """The run in a folder."""
    config = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: pass the folder of a run, what was --out of `mgd-ssl pretrain`")
    if not config.is_file():
        below = [path.parent for path in sorted(folder.glob("*/config.json"))]
        remedy = f"pass the runs below it, {below[0]} for one" if below else "pass what was --out of `mgd-ssl pretrain`"
        raise UserError(f"{folder} holds no run (no config.json): {remedy}")
    try:
        saved = json.loads(config.read_text())
        run = Run(
            folder, name, saved["config"], saved["data"], saved["teacher"], saved["environment"],
            read_metrics(folder / "metrics.jsonl"),
            {path.name: Evaluation.load(path) for path in sorted(folder.glob("evaluation_*.json"))},
            (folder / "result.json").is_file(),
        )  # fmt: skip
        if run.metrics:
            # what the other parts of the report ask for
            _ = run.state, run.student, run.seed, run.config["data"], run.config["mgd"]["weight"]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): check its permissions") from error
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"{config} is damaged or no run's ({type(error).__name__}: {error}): restore it, or leave this run out"
        ) from error
    if not run.metrics:
        raise UserError(f"{folder} holds a run without any measurement yet: wait for its first row, or leave it out")
    return run


def read_metrics(path: Path) -> Rows:
    """Rows of metrics.jsonl; a last line that is still being written is left out.

    Raises:
        UserError: when another line is damaged.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    rows: Rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            missing = [key for key in ("kind", "step", *REQUIRED.get(row["kind"], ())) if key not in row]
            if missing:
                raise KeyError(missing[0])
            rows.append(row)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise UserError(f"line {number} of {path} is damaged: mend or remove it") from error
    return rows

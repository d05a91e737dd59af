"""Run folders as the report reads them: nothing is trained, loaded or written here."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mgd_ssl.config import PretrainConfig
from mgd_ssl.errors import UserError
from mgd_ssl.files import read_json, sha256_of
from mgd_ssl.run.metrics import Rows, read_metrics
from mgd_ssl.run.result import Evaluation

TERM_TITLES = {"seed": "SEED", "disco": "DisCo", "simreg": "SimReg", "compress": "CompRess", "bingo": "BINGO"}
REMEDY = "pass what was --out of `mgd-ssl pretrain`, or the folder that runs lie in"


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
    task: str = "pretraining"

    def rows(self, kind: str) -> Rows:
        """Rows of metrics.jsonl of one kind."""
        return [self._as_now(row) for row in self.metrics if row["kind"] == kind]

    def _as_now(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row as this version writes it: once the distillation loss stood there before its weight."""
        if "distillation" not in row:
            return row
        plain = {name: value for name, value in row.items() if name != "distillation"}
        return plain if self.teacher is None else plain | {"mgd": self.config["mgd"]["weight"] * row["distillation"]}

    @property
    def student(self) -> str:
        """Architecture that is trained."""
        return str(self.config["student"])

    @property
    def method(self) -> str:
        """Name of the method in tables."""
        if self.task == "classification":
            terms = [term for term in ("mgd", "kd") if self.teacher and (self.config.get(term) or {}).get("weight")]
            return " + ".join(["supervised", *map(str.upper, terms)])
        if self.teacher is None:
            return "MoCo v2"
        settings = self.config.get("terms") or {}
        weights = {"MoCo v2": (self.config.get("moco") or {}).get("weight", 1), "MGD": self.config["mgd"]["weight"]}
        weights |= {title: (settings.get(name) or {}).get("weight") for name, title in TERM_TITLES.items()}
        return " + ".join(title for title, weight in weights.items() if weight) or "nothing"

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


def is_run(folder: Path) -> bool:
    """Whether `pretrain` wrote to a folder; `pack` and `linear` leave a config.json too, with other things in it.

    One that is damaged counts: whoever reads it says so.
    """
    path = folder / "config.json"
    try:
        if not path.is_file():
            return False
        return {"config", "data", "teacher"} <= read_of_run(path).keys()
    except (UserError, OSError):
        return True


def runs_in(folders: Sequence[Path], counts: Callable[[Path], bool] = is_run) -> list[Path]:
    """The runs among these folders and directly below them, each once.

    Args:
        folders: of runs, or that runs lie in.
        counts: tells whether a folder is a run's.

    Raises:
        UserError: when a folder is missing, or there is no run in it.
    """
    found: list[Path] = []
    for folder in folders:
        if not os.path.isdir(folder):  # not Path.is_dir, which raises for some names
            raise UserError(f"{folder} is not a folder: {REMEDY}")
        try:
            runs = [folder] if counts(folder) else [path for path in sorted(folder.iterdir()) if counts(path)]
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}): check its permissions") from error
        if not runs:
            raise UserError(f"{folder} holds no run: {REMEDY}")
        found += runs
    return list({run.resolve(): run for run in found}.values())


def read_runs(folders: Sequence[Path], tell: Callable[[str], None] = lambda words: None) -> list[Run]:
    """The runs in these folders and directly below them, each once, in this order.

    Args:
        folders: of runs, or that runs lie in.
        tell: is given a sentence for each run that lies in a folder of runs and has no measurement yet, or another
            report.

    Raises:
        UserError: when a folder is missing or holds no run, a run that is named itself has no measurement, or one is
            damaged.
    """
    named = {folder.resolve() for folder in folders}
    unique, told = list[Path](), ""
    for folder in runs_in(folders):
        if folder.resolve() not in named and (told := told_of_detector(folder)):
            tell(told)
        else:
            unique.append(folder)
    if not unique:
        raise UserError(told)
    runs = [read_run(folder, name) for folder, name in zip(unique, short_names(unique), strict=True)]
    for run in runs:
        if not run.metrics:
            words = f"{run.folder} holds a run without any measurement yet"
            if run.folder.resolve() in named or not any(other.metrics for other in runs):
                raise UserError(f"{words}: wait for its first row, or leave it out")
            tell(f"{words}: it is left out")
    return [run for run in runs if run.metrics]


def short_names(folders: Sequence[Path]) -> list[str]:
    """As many last parts of every path as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return [os.fsencode(name).decode(errors="replace") for name in names]  # a name may be no text at all


def read_run(folder: Path, name: str) -> Run:
    """The run in a folder, perhaps without any row of metrics.

    Raises:
        UserError: naming the file that is damaged or cannot be read.
    """
    config = folder / "config.json"
    saved = read_of_run(config)
    if told := told_of_detector(folder):
        raise UserError(told)
    for problem in problems(saved):
        raise UserError(f"{config} is damaged or no run's ({problem}): restore it, or leave this run out")
    return Run(
        folder, name, saved["config"], saved["data"], saved["teacher"], saved["environment"],
        read_metrics(folder / "metrics.jsonl"),
        {path.name: Evaluation.load(path) for path in sorted(folder.glob("evaluation_*.json"))},
        is_finished(folder), str(saved.get("task", "pretraining")),
    )  # fmt: skip


def told_of_detector(folder: Path) -> str:
    """What there is to say of a run that is a detection, with its newest AP; nothing of any other."""
    if read_of_run(folder / "config.json").get("task") != "detection":
        return ""
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "average_precision"]
    reached = f" (AP {rows[-1]['AP']:.1f})" if rows and rows[-1].get("AP") is not None else ""
    return f"{folder} holds a detector{reached}: mgd-ssl detect --evaluate {folder} writes its report"


def problems(saved: dict[str, Any]) -> Iterable[str]:
    """What the report needs of a config.json and does not find, in words."""

    def at(key: str) -> Any:
        value: Any = saved
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    for key in ("config", "data", "environment", "config.data", "config.mgd", "config.optim"):
        if not isinstance(at(key), dict):
            yield f"{key} is missing or no table"
    weighted = ["config.moco", "config.kd", "config.terms", *(f"config.terms.{name}" for name in TERM_TITLES)]
    for key in weighted:  # earlier versions did not have all of them
        if at(key) is not None and not isinstance(at(key), dict):
            yield f"{key} is no table"
        weight = at(f"{key}.weight")
        if weight is not None and type(weight) not in (int, float):
            yield f"{key}.weight is no number"
    counts = ("config.optim.epochs", "config.optim.batch_size", "data.num_images")
    for key, least in (("config.seed", 0), *((key, 1) for key in counts)):
        if type(at(key)) is not int or not least <= at(key) < 2**63:  # a bool is an int too
            yield f"{key} is missing or no number from {least} on"
            return
    if at("data.num_images") < at("config.optim.batch_size"):
        yield "data.num_images is less than config.optim.batch_size"
    if type(at("config.mgd.weight")) not in (int, float) or not abs(at("config.mgd.weight")) < 1e300:
        yield "config.mgd.weight is missing or no number"
    teacher = () if saved.get("teacher", "") is None else ("teacher.arch", "teacher.sha256")
    for key in ("config.student", "data.fingerprint", *teacher):
        if not isinstance(at(key), str):
            yield f"{key} is missing or no text"


def is_finished(folder: Path) -> bool:
    """Whether a run has its result.

    Raises:
        UserError: when that file is damaged.
    """
    path = folder / "result.json"
    if not path.is_file():
        return False
    if "steps" not in read_of_run(path):
        raise UserError(f"{path} is damaged or no run's: remove it, the same command writes it anew")
    return True


def read_of_run(path: Path) -> dict[str, Any]:
    """The object in a run's JSON file.

    Raises:
        UserError: when it cannot be read or is damaged.
    """
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"{error}: restore it, or leave this run out") from error

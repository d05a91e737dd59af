"""Linear evaluation from settings to a number with its protocol: check, compute features, train heads, measure."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from linear_eval.protocols import load_protocol
from mgd_ssl.command_line import parse
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.config import EvaluationConfig
from mgd_ssl.printable import printable
from mgd_ssl.run.lock import UNTRAINED
from mgd_ssl.settings import MAX_SEED, each_once

if TYPE_CHECKING:
    from mgd_ssl.run.result import Evaluation


class LinearConfig(EvaluationConfig):
    """Train linear classifiers on the features of a frozen backbone, and measure their accuracy."""

    protocol: str = "sweep"
    """sweep, sweep_full, logreg, moco, disco, simreg, or the path of a TOML file."""
    out: Path | None = None
    """Folder for the result, and for cached features; None: the run folder. Required for a file and for random:..."""
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field((0,), min_length=1)
    """One evaluation each; several give a mean and a standard deviation."""

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return each_once(value)


def main(argv: Sequence[str], prog: str = "mgd-ssl linear") -> int:
    """Evaluate and print the result."""
    config = parse(LinearConfig, argv, prog)
    from linear_eval.evaluator import linear  # torch is loaded once the settings are known to be right

    evaluation, file = linear(config)
    if os.environ.get("RANK", "0") == "0":
        whose = f"{evaluation.checkpoint}, an untrained {evaluation.arch}: " if evaluation.untrained else ""
        print(f"{printable(whose)}{told(evaluation)}\n{evaluation.protocol}\nsaved: {printable(file)}")
    return 0


def told(evaluation: "Evaluation") -> str:
    """`top-1 53.60 +- 0.12, top-5 78.70 +- 0.10 (3 seeds)`."""

    def one(metric: str) -> str:
        deviation = evaluation.deviation(metric)
        return f"{evaluation.mean(metric):.2f}" + ("" if deviation is None else f" +- {deviation:.2f}")

    count = len(evaluation.values["top1"])
    return f"top-1 {one('top1')}, top-5 {one('top5')} ({count} seed{'s' if count > 1 else ''})"


def check(argv: Sequence[str]) -> Path:
    """Where the result will be, when the settings are valid.

    Raises:
        UserError: when they are not.
    """
    config = parse(LinearConfig, argv, "mgd-ssl linear")
    from mgd_ssl.networks.untrained import untrained  # torch is loaded once the settings are known to be right

    load_protocol(config.protocol)
    untrained(config.checkpoint)  # `random:` names an encoder
    return folder_of(config)


def folder_of(config: LinearConfig) -> Path:
    """Folder of the result.

    Raises:
        UserError: when nothing says where.
    """
    if config.out is not None:
        return config.out
    if str(config.checkpoint).startswith(UNTRAINED) or not config.checkpoint.is_dir():
        raise UserError("out is not set: pass --out, the folder for the result (a run folder would be its own)")
    return config.checkpoint

"""What a run's folder tells of its run."""

import json
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mgd_ssl.errors import UserError
from mgd_ssl.run.checkpoint import PATTERN, Checkpoints, number
from mgd_ssl.run.result import read_json

JOBS = "jobs"  # folder in a run's where a launcher keeps its own; it may be there before the run
OF_A_START = ("config.json", "log.txt", "tensorboard", "checkpoints", JOBS, ".lock", ".*.tmp")
BEFORE_TRAINING = ("metrics.jsonl", "skipped_*.jsonl", "matching_costs.npz")  # said of settings that may change


def nothing_trained(out: Path) -> bool:
    """Whether no step is left of what was started in a folder, so that other settings may take its place.

    There is no checkpoint, no row of metrics.jsonl after step 0, and no file that a start would not have made.
    """
    names = os.listdir(out)
    if any(not any(fnmatch(name, known) for known in (*OF_A_START, *BEFORE_TRAINING)) for name in names):
        return False
    if Checkpoints(out / "checkpoints").paths():
        return False
    metrics = out / "metrics.jsonl"
    lines = metrics.read_text(errors="replace").splitlines() if metrics.is_file() else []
    return all(_before_training(line) for line in lines)


def _before_training(line: str) -> bool:
    try:
        return bool(json.loads(line)["step"] == 0)  # matching and k-NN of the untrained student
    except (ValueError, KeyError, TypeError):
        return False


def forget_start(out: Path) -> None:
    """Remove what a start with other settings has said before its first step."""
    for pattern in BEFORE_TRAINING:
        for path in out.glob(pattern):
            path.unlink()


def saved_description(out: Path) -> dict[str, Any]:
    """A run's `config.json`.

    Raises:
        UserError: when it is damaged.
    """
    try:
        return read_json(out / "config.json")
    except UserError as error:
        raise damaged_description(out, str(error)) from error


def damaged_description(out: Path, told: str | None = None) -> UserError:
    """What to tell of a `config.json` that is not what was written."""
    return UserError(f"{told or str(out / 'config.json') + ' is damaged'}: restore it, or choose another --out")


def no_run(out: Path) -> UserError:
    """What to tell of a folder that is not empty and has no `config.json`."""
    if Checkpoints(out / "checkpoints").paths():
        return UserError(
            f"{out / 'config.json'} is missing beside a run's checkpoints: restore it, or choose another --out"
        )
    return UserError(f"{out} is not empty and holds no run: choose another --out")


def unfinished(weights: Path) -> str | None:
    """`step 40 of 100` of the run whose checkpoint a file of weights is, None unless it stopped before its end.

    Args:
        weights: `RUN/checkpoints/step_*.pt`, or any other file.
    """
    if weights.parent.name != "checkpoints" or not PATTERN.fullmatch(weights.name):
        return None
    step = number(weights)
    try:
        saved = json.loads((weights.parents[1] / "config.json").read_text())
        optim = saved["config"]["optim"]
        total = optim["epochs"] * (saved["data"]["num_images"] // optim["batch_size"])
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError):
        return f"step {step}"
    return f"step {step} of {total}" if step < total else None

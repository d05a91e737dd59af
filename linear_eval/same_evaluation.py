"""Whether a folder's evaluation is the one that is asked for, and what it has come to."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from mgd_ssl.errors import UserError
from mgd_ssl.run.result import read_result
from mgd_ssl.setting_keys import differences

HEAD = "head.pt"
RESULT = ("top1", "top5", "loss", "lr", "weight_decay", "rounds")


def finished_evaluation(folder: Path) -> dict[str, Any] | None:
    """The result of an evaluation that is finished; None when it is not, or is damaged and must be made anew."""
    try:
        return read_result(folder, RESULT, HEAD)
    except UserError:
        return None


def hash_of_labels(labels: np.ndarray) -> str:
    """Hash of class indexes [n]: the same images may be labelled otherwise."""
    return hashlib.sha256(labels.astype(np.int64).tobytes()).hexdigest()


def check_same_evaluation(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise UserError when a folder holds the evaluation of another backbone, data set or protocol."""
    if changed := differences(old["config"], new["config"]):
        raise UserError(
            f"{out} holds an evaluation of something else ({'; '.join(changed)}): remove it, or choose another --out"
        )

"""Pretraining from settings to a usable student: check, build, continue where it stopped, train, export."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgd_ssl.config import PretrainConfig
from mgd_ssl.errors import UserError
from mgd_ssl.printable import printable
from mgd_ssl.run.folder import check_same, damaged_description, nothing_trained, saved_description
from mgd_ssl.run.lock import JOBS as JOBS
from mgd_ssl.run.lock import in_use
from mgd_ssl.settings import differences, flattened, parse
from mgd_ssl.tasks.pretraining import pretrain


def main(argv: Sequence[str]) -> int:
    """`mgd-ssl pretrain`: settings from the command line, then `pretrain`."""
    result = pretrain(parse(PretrainConfig, argv, "mgd-ssl pretrain"))
    if os.environ.get("RANK", "0") == "0":
        print(f"finished: {printable(result.encoder)}")
    return 0


def check(argv: Sequence[str]) -> Path:
    """The run's folder, when the settings are valid and the folder holds no run with others.

    Raises:
        UserError: when they are not.
    """
    config = parse(PretrainConfig, argv, "mgd-ssl pretrain")
    out, _ = required(config)
    saved = out / "config.json"
    if saved.is_file() and (in_use(out) or not nothing_trained(out)):
        try:
            changed = differences(completed(saved_description(out)["config"]), config.model_dump(mode="json"))
        except (LookupError, TypeError, AttributeError) as error:
            raise damaged_description(out) from error
        check_same(out, changed)
    return out


def required(config: PretrainConfig) -> tuple[Path, Path]:
    """`out` and `data.train`, which have no default."""
    if config.out is None:
        raise UserError("out is not set: pass --out, the folder this run may write to")
    if config.data.train is None:
        raise UserError("data.train is not set: pass --data.train, a folder of images or tar shards")
    return config.out, config.data.train


def identity(teacher: dict[str, Any] | None) -> list[Any] | None:
    """What has to stay the same of a saved teacher; earlier versions saved no more of it."""
    return [teacher[key] for key in ("arch", "sha256", "prefix")] if teacher else None


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Saved settings, with the defaults of those which the version that saved them did not have.

    Before there was a background transparency was dropped, which no setting does any more, so it gets none.
    """
    defaults = flattened(PretrainConfig().model_dump(mode="json"))
    defaults.pop("data.background")
    return defaults | flattened(saved)

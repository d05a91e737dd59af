"""`mgd-ssl detect`: settings from the command line, then a detector; or the evaluation of one."""

import os
from collections.abc import Sequence
from pathlib import Path

from mgd_ssl.command_line import parse
from mgd_ssl.printable import printable
from mgd_ssl.tasks.detection.config import DetectConfig


def main(argv: Sequence[str]) -> int:
    """Train, and say how well it detects and where it is."""
    config = parse(DetectConfig, argv, "mgd-ssl detect")
    from mgd_ssl.tasks.detection.detect import detect  # torch is loaded once the settings are known to be right

    result = detect(config)
    if os.environ.get("RANK", "0") == "0":
        print(", ".join(f"{name} {_shown(value)}" for name, value in result.average_precision.items()))
        print(f"finished: {printable(result.encoder)}")
    return 0


def check(argv: Sequence[str]) -> Path:
    """The run's folder, when the settings are valid and the folder holds no run with others.

    Raises:
        UserError: when they are not.
    """
    config = parse(DetectConfig, argv, "mgd-ssl detect")
    from mgd_ssl.tasks.detection.detect import check_settings

    check_settings(config)
    return config.out


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"

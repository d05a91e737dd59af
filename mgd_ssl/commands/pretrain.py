"""`mgd-ssl pretrain`: settings from the command line, then a student."""

import os
from collections.abc import Sequence
from pathlib import Path

from mgd_ssl.command_line import parse
from mgd_ssl.config import PretrainConfig
from mgd_ssl.printable import printable


def main(argv: Sequence[str]) -> int:
    """Pretrain, and say where the student is."""
    config = parse(PretrainConfig, argv, "mgd-ssl pretrain")
    from mgd_ssl.tasks.student import pretrain  # torch is loaded once the settings are known to be right

    result = pretrain(config)
    if os.environ.get("RANK", "0") == "0":
        print(f"finished: {printable(result.encoder)}")
    return 0


def check(argv: Sequence[str]) -> Path:
    """The run's folder, when the settings are valid and the folder holds no run with others.

    Raises:
        UserError: when they are not.
    """
    config = parse(PretrainConfig, argv, "mgd-ssl pretrain")
    from mgd_ssl.tasks.student import check_settings

    check_settings(config)
    return config.out

"""`mgd-ssl pretrain`: settings from the command line, then a student."""

import os
from collections.abc import Sequence
from pathlib import Path

from mgd_ssl.command_line import parse
from mgd_ssl.commands.continued import MORE_EPOCHS, settings_after
from mgd_ssl.config import PretrainConfig
from mgd_ssl.printable import printable


def main(argv: Sequence[str]) -> int:
    """Pretrain, and say where the student is."""
    config = read(argv)
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
    config = read(argv)
    from mgd_ssl.tasks.student import SAME

    SAME.check_settings(config, config.out)
    return config.out


def read(argv: Sequence[str]) -> PretrainConfig:
    """The settings on a command line; those of a finished run where it is to be trained for more epochs.

    Raises:
        UserError: when one is at fault.
    """
    args = list(argv)
    default = settings_after(args) if MORE_EPOCHS in args else None
    return parse(PretrainConfig, args, "mgd-ssl pretrain", default=default)

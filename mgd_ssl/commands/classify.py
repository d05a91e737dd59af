"""`mgd-ssl classify`: settings from the command line, then a classifier."""

import os
from collections.abc import Sequence
from pathlib import Path

from mgd_ssl.classify_settings import ClassifyConfig
from mgd_ssl.command_line import parse
from mgd_ssl.printable import printable


def main(argv: Sequence[str]) -> int:
    """Train, and say how well it classifies and where it is."""
    config = parse(ClassifyConfig, argv, "mgd-ssl classify")
    from mgd_ssl.tasks.classify import classify  # torch is loaded once the settings are known to be right

    result = classify(config)
    if os.environ.get("RANK", "0") == "0":
        last, best = result.validation, result.best
        print(
            f"last epoch: top-1 {last['top1']:.2f}, top-5 {last['top5']:.2f}; best epoch on the same images "
            f"({best['epoch']:.0f} of {result.epochs}): top-1 {best['top1']:.2f}, top-5 {best['top5']:.2f}"
            + ("; of the averaged weights" if result.weights == "averaged" else "")
        )
        print(f"finished: {printable(result.encoder)}")
    return 0


def check(argv: Sequence[str]) -> Path:
    """The run's folder, when the settings are valid and the folder holds no run with others.

    Raises:
        UserError: when they are not.
    """
    config = parse(ClassifyConfig, argv, "mgd-ssl classify")
    from mgd_ssl.tasks.classify import SAME

    SAME.check_settings(config, config.out)
    return config.out

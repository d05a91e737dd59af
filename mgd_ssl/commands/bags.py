"""`mgd-ssl bags`: the nearest images of every image, for the term bingo."""

import os
from collections.abc import Sequence
from pathlib import Path

from mgd_ssl.command_line import parse
from mgd_ssl.evaluation.config import BagsConfig
from mgd_ssl.printable import printable


def main(argv: Sequence[str]) -> int:
    """Write the file, and say where it is."""
    config = parse(BagsConfig, argv, "mgd-ssl bags")
    from mgd_ssl.evaluation.bags import make_bags  # torch is loaded once the settings are known to be right

    about = make_bags(config)
    if os.environ.get("RANK", "0") == "0":
        before = ", as before" if about.get("found") else ""
        print(f"{about['num_images']} bags of {about['neighbours']} images: {printable(config.out)}{before}")
    return 0


def check(argv: Sequence[str]) -> Path:
    """The folder of the file, when the settings are valid.

    Raises:
        UserError: when they are not.
    """
    return parse(BagsConfig, argv, "mgd-ssl bags").out.absolute().parent

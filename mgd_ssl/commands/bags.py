"""`mgd-ssl bags`: the nearest images of every image, for the term bingo."""

from collections.abc import Sequence

from mgd_ssl.command_line import parse
from mgd_ssl.evaluation.config import BagsConfig
from mgd_ssl.printable import printable


def main(argv: Sequence[str]) -> int:
    """Write the file, and say where it is."""
    config = parse(BagsConfig, argv, "mgd-ssl bags")
    from mgd_ssl.evaluation.bags import make_bags  # torch is loaded once the settings are known to be right

    about = make_bags(config)
    print(f"{about['num_images']} bags of {about['neighbours']} images: {printable(config.out)}")
    return 0

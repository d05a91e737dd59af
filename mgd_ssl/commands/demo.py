"""`mgd-ssl demo`: the whole job on an image set made on the spot, in minutes."""

from collections.abc import Sequence

from mgd_ssl.command_line import parse
from mgd_ssl.demo.config import DemoConfig


def main(argv: Sequence[str]) -> int:
    """Run what is not finished yet, then print and save the table."""
    config = parse(DemoConfig, argv, "mgd-ssl demo")
    from mgd_ssl.demo.study import study  # torch is loaded once the settings are known to be right

    study(config)
    return 0

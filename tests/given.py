"""Settings from files and flags, as tests give them."""

from mgd_ssl.command_line import parse
from mgd_ssl.config import PretrainConfig


def parsed(*args: str) -> PretrainConfig:
    """Settings of a command line that has what is required."""
    return parse(PretrainConfig, ["--out", "run", "--data.train", "photos", *args], "mgd-ssl pretrain")

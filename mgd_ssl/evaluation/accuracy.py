"""Top-1 and top-5."""

from typing import NamedTuple


class Accuracy(NamedTuple):
    """In percent."""

    top1: float
    top5: float

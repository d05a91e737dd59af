"""What a fault is."""

from typing import NamedTuple


class Fault(NamedTuple):
    """One wrong line."""

    name: str
    old: str
    new: str
    tests: tuple[str, ...]  # arguments of pytest; the first to fail ends the trial
    inside: str = ""

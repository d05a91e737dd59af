"""Ways to damage the content of a file."""

import random
from pathlib import Path

import pytest

from mgd_ssl import UserError


def flip(content: bytes, draw: random.Random, places: range | list[int] | None = None) -> bytes:
    """One bit the other way, anywhere or at one of these places."""
    changed = bytearray(content)
    place = draw.randrange(len(content)) if places is None else draw.choice(places)
    changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def emptied(content: bytes, draw: random.Random) -> bytes:
    return b""


def sentence(error: pytest.ExceptionInfo[UserError] | UserError, path: Path) -> str:
    """What is told, which is one line that names the file."""
    told = str(error.value if isinstance(error, pytest.ExceptionInfo) else error)
    assert str(path) in told and "\n" not in told
    return told

"""Many runs from lists of settings: every combination is one, in a folder named after it."""

import itertools
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from mgd_ssl.config import flattened
from mgd_ssl.errors import UserError


class Element(NamedTuple):
    """One run of a sweep."""

    name: str  # of its folder: `seed=0,mgd.weight=0.001`
    flags: list[str]  # to add to the command


def read_sweep(path: Path) -> list[Element]:
    """The runs a TOML file describes: each value is a list, of which every combination is one run.

    Raises:
        UserError: when the file is missing, no TOML, or a value is no list of different values.
    """
    try:
        lists = flattened(tomllib.loads(path.read_text()))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): pass a TOML file like `seed = [0, 1, 2]`"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML ({error}): mend that line") from error
    if not lists:
        raise UserError(f"{path} names no setting: write lists like `seed = [0, 1, 2]`")
    for key, values in lists.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{key} in {path} is {values!r}: write a list of values, one a run")
        if len({str(value) for value in values}) < len(values):
            raise UserError(f"{key} in {path} has a value twice: two runs cannot share a folder")
    keys = list(lists)
    return [
        Element(
            ",".join(f"{key}={_word(value)}" for key, value in zip(keys, values, strict=True)),
            [word for key, value in zip(keys, values, strict=True) for word in _flag(key, value)],
        )
        for values in itertools.product(*lists.values())
    ]


def _word(value: Any) -> str:
    """A value as part of a folder's name."""
    text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("/", "_")


def _flag(key: str, value: Any) -> list[str]:
    """A setting as words of a command line."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        group, _, last = name.rpartition(".")
        dot = "." if group else ""
        return [f"--{name}" if value else f"--{group}{dot}no-{last}"]
    return [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]

"""Many runs from lists of settings: every combination is one, in a folder named after it."""

import itertools
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mgd_ssl.command_line import read_toml
from mgd_ssl.errors import UserError
from mgd_ssl.printable import is_printable
from mgd_ssl.setting_keys import flattened
from mgd_ssl.settings import brief, shortened

MAX_ELEMENTS = 10_000  # runs of one sweep
MAX_NAME = 255  # bytes of a folder's name on common file systems


class Element(NamedTuple):
    """One run of a sweep."""

    name: str  # of its folder: `seed=0,mgd.weight=0.001`
    flags: list[str]  # to add to the command


def read_sweep(path: Path) -> list[Element]:
    """The runs a TOML file describes: each value is a list, of which every combination is one run.

    Raises:
        UserError: when the file is missing, no TOML, a value is no list of different values, or two runs would share a
            folder.
    """
    lists = flattened(read_toml(path))
    if not lists:
        raise UserError(f"{path} names no setting: write lists like `seed = [0, 1, 2]`")
    for key, values in lists.items():
        _check(path, key, values)
    count = math.prod(map(len, lists.values()))
    if count > MAX_ELEMENTS:
        raise UserError(f"{path} describes {count} runs: write shorter lists, {MAX_ELEMENTS} runs at most")
    keys = list(lists)
    elements = [
        Element(
            ",".join(f"{key}={_word(value)}" for key, value in zip(keys, values, strict=True)),
            [word for key, value in zip(keys, values, strict=True) for word in _flag(key, value)],
        )
        for values in itertools.product(*lists.values())
    ]
    _check_folders(path, elements)
    return elements


def _check(path: Path, key: str, values: Any) -> None:
    """Raise UserError unless these are different values that can be words of a command line and of a folder's name."""
    if key in ("help", "h"):
        raise UserError(f"{path} has the setting {key}: leave it out, it asks for a text")
    if not is_printable(key):
        raise UserError(f"{path} has the setting {brief(key)}: take line breaks and control characters out")
    if not isinstance(values, list) or not values:
        raise UserError(f"{key} in {path} is {brief(values)}: write a list of values, one a run")
    for value in values:
        for word in value if isinstance(value, list) else [value]:
            if not isinstance(word, bool | int | float | str):
                raise UserError(f"{key} in {path} has {brief(value)}: write numbers, words, or lists of them")
            if isinstance(word, str) and (word.startswith("-") or not is_printable(word)):
                raise UserError(
                    f"{key} in {path} has {brief(word)}: write words without control characters or a first -"
                )
    if len({str(value) for value in values}) < len(values):
        raise UserError(f"{key} in {path} has a value twice: two runs cannot share a folder")


def _check_folders(path: Path, elements: Sequence[Element]) -> None:
    """Raise UserError when two runs would get one folder, where file systems tell no case apart for one."""
    seen: dict[str, str] = {}
    for name, _ in elements:
        if len(os.fsencode(name)) > MAX_NAME:
            raise UserError(f"{path} makes the folder {shortened(name)}: write shorter values, {MAX_NAME} bytes in all")
        plain = unicodedata.normalize("NFC", name).casefold()
        if plain in seen:
            raise UserError(f"{path} has two runs that would share the folder {name}: change or drop one of the values")
        seen[plain] = name


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

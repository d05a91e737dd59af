"""Class indexes from names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mgd_ssl.errors import UserError


def folder_labels(root: Path, names: Iterable[str]) -> tuple[np.ndarray, list[str]]:
    """Class index [n] of paths below `root` and the sorted class names: the first folder of every path.

    Raises:
        UserError: when one lies outside class folders, or there is one class only.
    """
    seen: dict[str, int] = {}
    codes: list[int] = []
    for name in names:
        folder, inside, _ = name.partition("/")
        if not inside:
            raise UserError(f"{root / name} has no label: put images into one folder a class")
        codes.append(seen.setdefault(folder, len(seen)))
    classes = sorted(seen)
    if len(classes) == 1:
        raise UserError(f"{root} holds the single class {classes[0]!r}: labels need at least two folders")
    index_of = {name: index for index, name in enumerate(classes)}
    return np.array([index_of[name] for name in seen])[codes], classes


def numbered(values: Iterable[str]) -> dict[str, int]:
    """Class index of every class: by number where all of them are numbers, else by name."""
    names = set(values)
    numeric = all(name.isascii() and name.isdigit() for name in names)
    key: Any = int if numeric else str
    return {name: index for index, name in enumerate(sorted(names, key=key))}

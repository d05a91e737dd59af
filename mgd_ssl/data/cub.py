"""CUB-200-2011 as it unpacks: text tables beside a folder of images, no folders of its two parts.

Blank-separated tables with ids from 1 on (http://www.vision.caltech.edu/datasets/cub_200_2011). A path
CUB_200_2011/train stands for the images whose flag in train_test_split.txt is 1, CUB_200_2011/val (or /test) for the
others.
"""

from pathlib import Path

import numpy as np

from mgd_ssl.data.folder import ImageList
from mgd_ssl.errors import UserError
from mgd_ssl.printable import shown

TABLES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
PARTS = {"train": "1", "val": "0", "test": "0"}  # of the path -> flag in the table


def is_part(path: Path) -> bool:
    """Whether a path stands for a part of a CUB folder, damaged or not."""
    tables = [name for name in TABLES if (path.parent / name).is_file()]
    return path.name in PARTS and not path.exists() and len(tables) > 1 and (path.parent / "images").is_dir()


class CubImages(ImageList):
    """One part of the images.

    Args:
        root: folder of the images.
        classes: class of every image, by its path below the root.
    """

    def __init__(self, root: Path, classes: dict[str, str]) -> None:
        super().__init__(root, list(classes))
        self._names = sorted(set(classes.values()))
        index_of = {name: index for index, name in enumerate(self._names)}
        self._labels = np.array([index_of[classes[name]] for name in self.names], dtype=np.int64)

    def labels(self) -> tuple[np.ndarray, list[str]]:
        """Class index [n] of every image, and the names of the classes."""
        return self._labels, self._names


def open_part(path: Path) -> CubImages:
    """The images of `CUB_200_2011/train` or `/val`.

    Raises:
        UserError: naming the table that is missing or damaged, or the id that has no image, class or part.
    """
    folder = path.parent
    if missing := [name for name in TABLES if not (folder / name).is_file()]:
        raise UserError(f"{folder / missing[0]} is missing: unpack CUB_200_2011.tgz again")
    images, labels, parts, classes = (read_table(folder / name) for name in TABLES)
    for table, name in ((labels, TABLES[1]), (parts, TABLES[2])):
        if odd := sorted(images.keys() ^ table.keys(), key=int):
            has, lacks = ("images.txt", name) if odd[0] in images else (name, "images.txt")
            raise UserError(f"{folder}: id {odd[0]} is in {has} and not in {lacks}: unpack CUB_200_2011.tgz again")
    if odd := sorted(set(labels.values()) - classes.keys()):
        raise UserError(
            f"{folder / TABLES[1]} names class {shown(odd[0])}, which classes.txt does not: unpack it again"
        )
    if odd := sorted(set(parts.values()) - {"0", "1"}):
        raise UserError(f"{folder / TABLES[2]} holds the flag {shown(odd[0])}, not 0 or 1: unpack it again")
    chosen = {name: classes[labels[key]] for key, name in images.items() if parts[key] == PARTS[path.name]}
    if empty := sorted(set(classes.values()) - set(chosen.values())):
        raise UserError(f"{path}: class {shown(empty[0])} has no image in this part: unpack CUB_200_2011.tgz again")
    return CubImages(folder / "images", chosen)


def read_table(path: Path) -> dict[str, str]:
    """The second word of every line by its first, a whole number.

    Raises:
        UserError: when it cannot be read, or a line is none of a table.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): unpack CUB_200_2011.tgz again") from error
    table: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        key, _, value = line.strip().partition(" ")
        if not (key.isascii() and key.isdigit() and value) or key in table:
            raise UserError(f"line {number} of {path} is no id with its entry: unpack CUB_200_2011.tgz again")
        table[key] = value
    return table

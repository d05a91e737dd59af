"""The images of a data set, by index."""

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from mgd_ssl.errors import UserError

EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jp2",
        ".avif",
    ]
)  # what PIL reads among the formats photographs come in


class ImageList:
    """Image files below a folder, sorted by their path, in two arrays that processes share cheaply.

    A million paths as Python strings would be copied into every data worker as soon as it looks at them.
    """

    def __init__(self, root: Path, names: Sequence[str], ignored: Sequence[str] = ()) -> None:
        encoded = sorted(os.fsencode(name) for name in names)
        self.root = root
        self.ignored = list(ignored)  # files passed over for their extension
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    @classmethod
    def scan(cls, root: Path) -> "ImageList":
        """All image files below `root`, links followed.

        Raises:
            UserError: when the folder is missing, unreadable or holds no image.
        """
        if not root.is_dir():
            raise UserError(f"{root} is not a folder: pass a folder of images")
        names, ignored = _walk(root)
        if not names:
            found = f"{len(ignored)} other files, first {ignored[0]}" if ignored else "it is empty"
            raise UserError(f"{root} holds no image ({found}): pass a folder with files like .jpg or .png in it")
        return cls(root, names, ignored)

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, index: int) -> str:
        """Path relative to the root."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]])

    def read(self, index: int) -> bytes:
        """The encoded image.

        Raises:
            OSError: as the file system says.
        """
        return (self.root / self.name(index)).read_bytes()

    def open(self, index: int) -> Image.Image:
        """Decode an image to RGB; whatever is wrong with the file is an exception."""
        return decode(self.read(index))

    def fingerprint(self) -> str:
        """Hash of the names and their order."""
        return hashlib.sha256(self._bytes + self._ends.tobytes()).hexdigest()

    def labels(self) -> tuple[np.ndarray, list[str]]:
        """Class index [n] of every image and the class names: the first folder of its path.

        Raises:
            UserError: when images lie outside class folders, or there is one class only.
        """
        folders = [Path(self.name(i)).parts for i in range(len(self))]
        loose = next((i for i, parts in enumerate(folders) if len(parts) < 2), None)
        if loose is not None:
            raise UserError(f"{self.root / self.name(loose)} has no label: put images into one folder a class")
        classes = sorted({parts[0] for parts in folders})
        if len(classes) == 1:
            raise UserError(f"{self.root} holds the single class {classes[0]!r}: labels need at least two folders")
        index_of = {name: index for index, name in enumerate(classes)}
        return np.array([index_of[parts[0]] for parts in folders]), classes


def decode(content: bytes) -> Image.Image:
    """An encoded image as RGB, through Pillow; whatever is wrong with it is an exception."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError:  # its own text names a buffer's address
        raise UnidentifiedImageError("its format is none that Pillow knows") from None


def _walk(root: Path) -> tuple[list[str], list[str]]:
    names: list[str] = []
    ignored: list[str] = []
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed ({error.strerror}): check its permissions") from error

    for folder, subfolders, files in os.walk(root, onerror=fail, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link back to a folder above
            subfolders.clear()
            continue
        seen.add(real)
        relative = os.path.relpath(folder, root)
        for file in files:
            hidden = file.startswith(".")
            wanted = not hidden and os.path.splitext(file)[1].lower() in EXTENSIONS
            (names if wanted else ignored).append(os.path.normpath(os.path.join(relative, file)))
    return names, ignored


class Unreadable(NamedTuple):
    """A file that could not be decoded."""

    name: str
    why: str

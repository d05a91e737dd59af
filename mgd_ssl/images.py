"""The images of a data set, by index."""

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from mgd_ssl.errors import UserError

DECODER_VERSION = 1  # to be raised when the pixels of any file change; caches of features hold it
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


class PackedNames:
    """Strings in two arrays that processes share cheaply.

    A million of them as Python strings would be copied into every data worker as soon as it looks at them.

    Args:
        packed: [bytes] uint8, all names one after the other.
        ends: [n] where each of them ends.
    """

    def __init__(self, packed: np.ndarray, ends: np.ndarray) -> None:
        self.packed, self.ends = packed, ends

    @classmethod
    def of(cls, encoded: Sequence[bytes]) -> "PackedNames":
        """Pack names in the given order."""
        packed = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(packed, np.cumsum([len(name) for name in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.packed[start : self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


class Images(ABC):
    """The images of a data set, by index; the same ones in the same order in every process.

    Cheap to copy into data workers, however they are started.
    """

    root: Path  # stands before a name in messages
    ignored: list[str]  # what was passed over for its extension

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What the image is called below the root, as no other one is."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image.

        Raises:
            OSError: as the file system says, or when the file is no longer the one that was listed.
        """

    def open(self, index: int) -> Image.Image:
        """Decode an image to RGB; whatever is wrong with it is an exception."""
        return decode(self.read(index))

    @abstractmethod
    def labels(self) -> tuple[np.ndarray, list[str]]:
        """Class index [n] of every image, and the names of the classes.

        Raises:
            UserError: when an image has no class, or there is one class only.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of what the images are called, and of their order; the same wherever they lie."""

    @abstractmethod
    def state(self) -> str:
        """Hash of the place, and of the names, sizes and times of all files: another one when a file is replaced."""


class ImageList(Images):
    """Image files below a folder, sorted by their path."""

    def __init__(self, root: Path, names: Sequence[str], ignored: Sequence[str] = ()) -> None:
        self.root, self.ignored = root, list(ignored)
        self.names = PackedNames.of(sorted(os.fsencode(name) for name in names))

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
        return len(self.names)

    def name(self, index: int) -> str:
        """Path relative to the root."""
        return self.names[index]

    def read(self, index: int) -> bytes:
        """The encoded image."""
        return (self.root / self.name(index)).read_bytes()

    def labels(self) -> tuple[np.ndarray, list[str]]:
        """Class index [n] of every image and the class names: the first folder of its path, sorted."""
        return folder_labels(self.root, self.names)

    def fingerprint(self) -> str:
        """Hash of the names and their order."""
        return hashlib.sha256(self.names.packed.tobytes() + self.names.ends.tobytes()).hexdigest()

    def state(self) -> str:
        """Hash of the place, and of the names, sizes and times of all files."""
        return hash_of_files(self.root, self.fingerprint(), self.names)


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


def hash_of_files(root: Path, fingerprint: str, names: Iterable[str]) -> str:
    """Hash of a place, of what is there, and of the sizes and times of its files."""
    digest = hashlib.sha256(os.fsencode(f"{root.resolve()}\n{fingerprint}"))
    for name in names:
        stat = (root / name).stat()
        digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def is_image(name: str) -> bool:
    """Whether a path is one of an image: its extension is, and it is not hidden (as macOS's `._x.jpg` are)."""
    base = name.rpartition("/")[2]
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in EXTENSIONS


def identify(content: bytes) -> Image.Image:
    """An encoded image with only its header looked at; whatever is wrong with that is an exception."""
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:  # its own text names a buffer's address
        raise UnidentifiedImageError("its format is none that Pillow knows") from None


def decode(content: bytes) -> Image.Image:
    """An encoded image as RGB, through Pillow; whatever is wrong with it is an exception."""
    with identify(content) as image:
        return image.convert("RGB")


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
            (names if is_image(file) else ignored).append(os.path.normpath(os.path.join(relative, file)))
    return names, ignored


class Unreadable(NamedTuple):
    """A file that could not be decoded."""

    name: str
    why: str

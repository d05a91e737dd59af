"""Image files below a folder."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mgd_ssl.data.images import Images, hash_of_files, read_regular
from mgd_ssl.data.labels import folder_labels
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


def _folders_in(root: Path) -> set[str]:
    """Names of the folders directly below one, hidden ones left out."""
    try:
        with os.scandir(root) as entries:
            return {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    except OSError:  # the images are told by a list
        return set()


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
        return read_regular(self.root / self.name(index), self.decoding.max_bytes)

    def labels(self) -> tuple[np.ndarray, list[str]]:
        """Class index [n] of every image and the class names: the first folder of its path, sorted."""
        labels, classes = folder_labels(self.root, self.names)
        if empty := sorted(_folders_in(self.root) - set(classes)):
            raise UserError(
                f"{self.root / empty[0]} is the folder of a class without images: add some, or remove the folder"
            )
        return labels, classes

    def fingerprint(self) -> str:
        """Hash of the names and their order."""
        return hashlib.sha256(self.names.packed.tobytes() + self.names.ends.tobytes()).hexdigest()

    def state(self) -> str:
        """Hash of the place, and of the names, sizes and times of all files."""
        return hash_of_files(self, self.names)


def is_image(name: str) -> bool:
    """Whether a path is one of an image: its extension is, and it is not hidden (as macOS's `._x.jpg` are)."""
    base = name.rpartition("/")[2]
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in EXTENSIONS


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

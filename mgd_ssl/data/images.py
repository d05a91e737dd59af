"""The images of a data set, by index."""

import errno
import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from mgd_ssl.data.decode import USUAL, Decoding, decode
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
    decoding: Decoding = USUAL  # how they become pixels

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What the image is called below the root, as no other one is."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image.

        Raises:
            OSError: as the file system says, or when the file is no regular one, has more bytes than any image may
                have (`Decoding.max_bytes`), or is no longer the one that was listed.
        """

    def open(self, index: int) -> Image.Image:
        """Decode an image to RGB; whatever is wrong with it is an exception."""
        return decode(self.read(index), self.decoding)

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
        """Hash of the place, of the names, sizes and times of all files, and of how they are decoded: another one when
        a file is replaced."""


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
        return folder_labels(self.root, self.names)

    def fingerprint(self) -> str:
        """Hash of the names and their order."""
        return hashlib.sha256(self.names.packed.tobytes() + self.names.ends.tobytes()).hexdigest()

    def state(self) -> str:
        """Hash of the place, and of the names, sizes and times of all files."""
        return hash_of_files(self, self.names)


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


def hash_of_files(images: Images, files: Iterable[str]) -> str:
    """Hash of a place, of what is there, of the sizes and times of its files, and of how they are decoded."""
    digest = hashlib.sha256(os.fsencode(f"{images.root.resolve()}\n{images.fingerprint()}\n{images.decoding}"))
    for name in files:
        try:
            found = (images.root / name).stat()
            digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
        except OSError:  # a link to nothing, or gone: an unreadable image like any other
            digest.update(b"gone\n")
    return digest.hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """A regular file (or a link to one) to read.

    Raises:
        OSError: as the file system says, and for pipes, devices and sockets, which are not waited for.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_regular(path: Path, most: int) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: as of `open_regular`, and when there are more than `most`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_bytes(size, most)
        return file.read(size)


def check_bytes(size: int, most: int) -> None:
    """Raise OSError when an encoded image has more than `most` bytes."""
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size} bytes, and no image of max_pixels has more than {most}")


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


class Unreadable(NamedTuple):
    """A file that could not be decoded."""

    name: str
    why: str


class Noted(list[Unreadable]):
    """What there is to tell of the files of a batch: those that could not be decoded, and two counts."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded = 0  # images
        self.composited = 0  # of them on the background, for their transparent parts

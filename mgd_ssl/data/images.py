"""The images of a data set, by index."""

import errno
import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from mgd_ssl.config import USUAL, Decoding
from mgd_ssl.data.decode import decode


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

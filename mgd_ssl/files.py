"""Files that are written whole or not at all, and one sentence for a disk that does not take them."""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mgd_ssl.errors import TrainingError, UserError
from mgd_ssl.posix_locks import locked

PIECE = 2**20  # bytes
AGAIN = "then run the same command again"
ELSEWHERE = "or choose another --out"
PATH_AT_FAULT = {  # what no room on the disk would mend
    errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM,
}  # fmt: skip
REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "have the disk mounted for writing",
    errno.ENOENT: "put its folder back",
    errno.ESTALE: "put its folder back",
}


class DiskError(TrainingError):
    """A file could not be written; what was saved before stays."""


@contextmanager
def writing(
    path: Path, advice: str = AGAIN, *, at_start: bool = False, kept: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Errors of the file system in the block become one sentence that names `path`.

    Args:
        path: what is written in the block.
        advice: what to do once the cause is mended.
        at_start: nothing was done before, so that a path that cannot be is a setting at fault.
        kept: called when it fails; what there is to say of an older file.

    Raises:
        DiskError: when the disk is full, out of inodes, read-only, gone or broken.
        UserError: with `at_start`, for a path that cannot be.
    """
    try:
        yield
    except OSError as error:
        what = f"{path} cannot be written ({reason(path, error)}){kept()}"
        if at_start and error.errno in PATH_AT_FAULT:
            raise UserError(f"{what}: choose another --out") from error
        raise DiskError(f"{what}: {remedy(path, error)}, {advice}") from error


def reason(path: Path, error: OSError) -> str:
    """What the file system says, in its words where they are right."""
    if error.errno == errno.ENOSPC and _inodes_left(path) == 0:
        return "no inodes left"  # the system calls this `No space left on device`, next to a disk with space
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return "its folder was moved or removed"
    return error.strerror or str(error)  # Pillow and numpy raise some without a number


def remedy(path: Path, error: OSError) -> str:
    """What to do about it."""
    if error.errno == errno.ENOSPC and _inodes_left(path) == 0:
        return "remove files you no longer need"
    return REMEDIES.get(error.errno or 0, "make room or mend the folder")


def _inodes_left(path: Path) -> int | None:
    """None where the file system does not count them, or is gone."""
    there = next(folder for folder in path.absolute().parents if folder.is_dir())
    try:
        disk = os.statvfs(there)
    except OSError:
        return None
    return disk.f_ffree if disk.f_files else None


def check_place(path: Path) -> None:
    """Raise what `writing` does, before any work is done, where it is plain that `path` cannot be made; makes nothing.

    Raises:
        DiskError: when it lies on a disk that is read-only.
        UserError: when what it lies in is no folder, or one that may not be written to.
    """
    above = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.exists(folder))
    with writing(path, ELSEWHERE, at_start=True):
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(above, os.W_OK | os.X_OK):
            number = errno.EROFS if os.statvfs(above).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number))


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write in the block; `path` holds its old content or, after the block, all of the new, even when killed.

    Raises:
        OSError: as the file system says; nothing is left behind, neither after another error in the block.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    sweep(path.parent, of=path.name)
    try:
        with claimed(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name survives a power cut too
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that `path` holds either its old content or all of the new, even when killed.

    Raises:
        OSError: as the file system says; nothing is left behind.
    """
    with whole_file(path) as file:
        file.write(content)


class Appended:
    """A file that grows by whole lines: what cannot be written whole is taken back.

    Unbuffered, so that closing it has nothing left to write, and open by its descriptor, so that it goes on where the
    folder is moved to.

    Args:
        path: of the file, made if need be.

    Raises:
        OSError: as the file system says, here and in all methods.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    @property
    def size(self) -> int:
        """Bytes so far."""
        return os.fstat(self._file.fileno()).st_size

    def append(self, content: bytes) -> None:
        """Add to the end: all of it, or nothing and an error."""
        before, rest = self.size, memoryview(content)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            if self.size > before:
                self.cut(before)
            raise

    def cut(self, size: int) -> None:
        """Leave the first bytes only."""
        os.ftruncate(self._file.fileno(), size)

    def sync(self) -> None:
        """Return when the content survives a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def take_room(file: BinaryIO) -> None:
    """Make the disk keep room for the whole of a file that may have holes, its content left as it is.

    Raises:
        OSError: where there is not enough.
    """
    size = os.fstat(file.fileno()).st_size
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, PIECE):  # macOS has nothing of the kind
        file.seek(start)
        piece = file.read(min(PIECE, size - start))
        file.seek(start)
        file.write(piece)
    file.flush()


NAME = re.compile(r"\.(?P<of>.+)\.\d+\.tmp")  # as `whole_file` calls them


def claimed(path: Path) -> BinaryIO:
    """A new file that is locked while it is open, so for as long as the process lives at most.

    Raises:
        OSError: as the file system says.
    """
    while True:
        file = path.open("w+b")
        try:
            mine = locked(file)
        except OSError:  # a file system without locks, where nothing is swept either
            return file
        if not mine:  # it is just being swept
            file.close()
            time.sleep(0.01)
            continue
        if path.exists():
            return file
        file.close()


def sweep(folder: Path, of: str | None = None) -> None:
    """Remove the temporary files in a folder that nobody writes any more; one that cannot be removed stays.

    Args:
        folder: which may be absent.
        of: only those of the file of this name; needed where the folder is not ours alone.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            match = NAME.fullmatch(path.name)
            if match and of in (None, match["of"]):
                _remove_unless_claimed(path)


def _remove_unless_claimed(path: Path) -> None:
    with suppress(OSError), path.open("r+b") as file:
        if locked(file):
            path.unlink()


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A dictionary from a file.

    Raises:
        UserError: when it cannot be read, or is something else.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({'empty' if not path.stat().st_size else 'no JSON'})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (a {type(content).__name__} and no dictionary)")
    return content

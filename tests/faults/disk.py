"""A small disk that can be filled, run out of inodes or become read-only while it is in use."""

import resource
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FAULTS = ("full", "inodes", "read-only")
REASONS = {  # what is told of each, and of what stands in for them
    "full": "No space left on device",
    "inodes": "no inodes left",
    "read-only": "Read-only file system",
    "limit": "File too large",
}


class Disk:
    """A tmpfs of a few megabytes; where none can be mounted, a limit on the size of files stands in for all faults.

    Args:
        folder: where it is mounted.
        megabytes: its size.
    """

    def __init__(self, folder: Path, megabytes: int = 64) -> None:
        self.folder = folder
        self.mounted = _mount("-t", "tmpfs", "-o", f"size={megabytes}m,nr_inodes=4000", "tmpfs", str(folder))
        self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        self._covered = False

    def fail(self, fault: str) -> str:
        """Have it fail from now on; returns the reason a program should give."""
        if not self.mounted:
            warnings.warn(f"no disk can be mounted here: a limit on file sizes stands in for {fault}", stacklevel=2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limit[1]))
            return REASONS["limit"]
        if fault == "full":
            fill(self.folder)
        elif fault == "inodes":
            use_up_inodes(self.folder)
        else:
            # files that are open keep a disk from being mounted read-only: it is covered with itself, as seen by path
            assert _mount("--bind", str(self.folder), str(self.folder))
            self._covered = True
            assert _mount("-o", "remount,bind,ro", str(self.folder))
        return REASONS[fault]

    def mend(self) -> None:
        """Have it work again."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)
        if self._covered:
            subprocess.run(["umount", str(self.folder)], check=True)
            self._covered = False
        for path in self.folder.glob(".fault*"):
            path.unlink()

    def unmount(self) -> None:
        """Give it back, with all that is on it."""
        self.mend()
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """A disk mounted on a new folder while the block runs."""
    folder.mkdir()
    disk = Disk(folder)
    try:
        yield disk
    finally:
        disk.unmount()


def fill(folder: Path) -> None:
    """Leave no byte free."""
    with (folder / ".fault").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


def use_up_inodes(folder: Path) -> None:
    """Leave room, but none for another file."""
    with suppress(OSError):
        for number in range(10_000):
            (folder / f".fault{number}").touch()


def _mount(*args: str) -> bool:
    try:
        return subprocess.run(["mount", *args], capture_output=True).returncode == 0
    except OSError:  # there is no such command
        return False

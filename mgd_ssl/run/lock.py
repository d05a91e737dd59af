"""Names in a run's folder that others know, and the lock of who works in it; imports nothing heavy.

Locks are POSIX's (`fcntl.lockf`), of a process: a forked data worker does not have its parent's. The package filelock
is not used, as it takes flock's, which data workers would inherit and hold for seconds after their parent was killed.
A process loses such a lock when it closes any file it has opened of that name, so the holder must not ask for it.
"""

import os
import struct
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from mgd_ssl.errors import UserError

JOBS = "jobs"  # folder in a run's where a launcher keeps its own; it may be there before the run
UNTRAINED = "random:"  # begins what may stand in the place of a file of weights: `random:resnet18`

HELD = (BlockingIOError, PermissionError)  # EAGAIN or EACCES, as the system likes
PAUSE = 0.05  # seconds, far more than a question by `_is_locked` takes


def take(lock: IO[Any]) -> bool:
    """Lock a file, open for writing, until it is closed or this process ends; False when another process has it.

    Raises:
        UserError: where there are no such locks.
        OSError: as the file system says.
    """
    if _try(lock, "LOCK_EX"):
        return True
    if sys.platform == "linux":
        return False
    time.sleep(PAUSE)  # it may have been asked for at this very moment
    return _try(lock, "LOCK_EX")


def in_use(out: Path) -> bool:
    """Whether another process works in a run's folder."""
    if not (out / ".lock").is_file():
        return False
    with (out / ".lock").open() as lock:
        return _asked(lock) if sys.platform == "linux" else not _try(lock, "LOCK_SH")


def _asked(lock: IO[Any]) -> bool:
    """Ask for a lock without taking it; elsewhere the question has other forms, so there it is taken for a moment."""
    fcntl = _fcntl()
    question = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock of 64-bit Linux
    answer = fcntl.fcntl(lock, fcntl.F_GETLK, question)
    return bool(struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK)


def _try(lock: IO[Any], kind: str) -> bool:
    fcntl = _fcntl()
    try:
        fcntl.lockf(lock, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except HELD:
        return False
    return True


def _fcntl() -> ModuleType:
    try:
        import fcntl
    except ModuleNotFoundError as error:
        raise UserError(f"this system ({sys.platform}) has no POSIX locks: on Windows, use WSL2") from error
    return fcntl

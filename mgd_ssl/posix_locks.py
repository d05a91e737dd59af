"""POSIX's locks of whole files (`fcntl.lockf`), of a process: a forked data worker does not have its parent's.

The package filelock is not used, as it takes flock's, which data workers would inherit and hold for seconds after their
parent was killed. A process loses such a lock when it closes any file it has opened of that name.
"""

import os
import struct
import sys
from types import ModuleType
from typing import IO, Any, Literal

from mgd_ssl.errors import UserError

HELD = (BlockingIOError, PermissionError)  # EAGAIN or EACCES, as the system likes


def locked(file: IO[Any], kind: Literal["LOCK_EX", "LOCK_SH"] = "LOCK_EX") -> bool:
    """Lock a file until it is closed or this process ends; False when another process has it.

    Raises:
        UserError: where there are no such locks.
        OSError: as the file system says; some have no locks.
    """
    fcntl = _fcntl()
    try:
        fcntl.lockf(file, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except HELD:
        return False
    return True


def held_by_another(file: IO[Any]) -> bool:
    """Ask for a lock without taking it, which has this form on 64-bit Linux alone."""
    fcntl = _fcntl()
    question = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock
    answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    return bool(struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK)


def _fcntl() -> ModuleType:
    try:
        import fcntl
    except ModuleNotFoundError as error:
        raise UserError(f"this system ({sys.platform}) has no POSIX locks: on Windows, use WSL2") from error
    return fcntl

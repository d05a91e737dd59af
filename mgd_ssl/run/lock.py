"""Names in a run's folder that others know, and whether a process works in it; imports nothing heavy."""

import fcntl
import os
import struct
import sys
from pathlib import Path

JOBS = "jobs"  # folder in a run's where a launcher keeps its own; it may be there before the run
UNTRAINED = "random:"  # begins what may stand in the place of a file of weights: `random:resnet18`


def in_use(out: Path) -> bool:
    """Whether a process works in a run's folder: asks for its lock without taking it."""
    if not (out / ".lock").is_file():
        return False
    if sys.platform != "linux":
        return _is_locked(out / ".lock")
    question = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock of 64-bit Linux
    with (out / ".lock").open() as lock:
        answer = fcntl.fcntl(lock, fcntl.F_GETLK, question)
    return bool(struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK)


def _is_locked(path: Path) -> bool:
    """The same by trying, where the question has another form: a run that starts at this very moment may be refused."""
    with path.open() as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False

"""Whether a process works in a run's folder."""

import fcntl
import os
import struct
from pathlib import Path


def in_use(out: Path) -> bool:
    """Whether a process works in a run's folder: asks for its lock without taking it."""
    if not (out / ".lock").is_file():
        return False
    question = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock of 64-bit Linux
    with (out / ".lock").open() as lock:
        answer = fcntl.fcntl(lock, fcntl.F_GETLK, question)
    return bool(struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK)


JOBS = "jobs"  # folder in a run's where a launcher keeps its own; it may be there before the run

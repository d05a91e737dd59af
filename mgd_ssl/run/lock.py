"""Names in a run's folder that others know, and the lock of who works in it; imports nothing heavy.

A process loses its lock when it closes any file it has opened of that name, so the holder must not ask for it.
"""

import sys
import time
from pathlib import Path
from typing import IO, Any

from mgd_ssl.posix_locks import held_by_another, locked

JOBS = "jobs"  # folder in a run's where a launcher keeps its own; it may be there before the run
UNTRAINED = "random:"  # begins what may stand in the place of a file of weights: `random:resnet18`

PAUSE = 0.05  # seconds, far more than a question of `in_use` takes


def take(lock: IO[Any]) -> bool:
    """Lock a file, open for writing, until it is closed or this process ends; False when another process has it.

    Raises:
        UserError: where there are no such locks.
        OSError: as the file system says.
    """
    if locked(lock):
        return True
    if sys.platform == "linux":
        return False
    time.sleep(PAUSE)  # it may have been asked for at this very moment
    return locked(lock)


def in_use(out: Path) -> bool:
    """Whether another process works in a run's folder."""
    if not (out / ".lock").is_file():
        return False
    with (out / ".lock").open() as lock:
        return held_by_another(lock) if sys.platform == "linux" else not locked(lock, "LOCK_SH")

"""Processes that end with the one that started them, also when that one is killed and can tell nobody."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of Linux' prctl
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # here, as a forked process should load nothing


def end_with_parent(parent: int) -> None:
    """Have this process be killed as soon as the thread that started it is gone; only Linux can do that.

    Args:
        parent: pid of the process that started this one; is it gone already, this one ends at once.
    """
    if LIBC is None:
        return
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL.value, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)

"""A data worker as a process: what it may do, what it says, and what is said when it ends too early.

Workers are forked: measured with 1.3 million names and a network of 100 MB, one is there in 30 ms and keeps 12 MB of
its own. From a fork server it takes 180 ms (and the first one 2.5 s) and 62 MB, spawned 6.5 s and 560 MB, and both
want a script that calls `pretrain` to be written for it. The price of a fork is that a lock which another thread of the
parent holds at that moment is never released in the worker. The display of a run is such a thread, so a worker
writes nothing through it, nor through anything else it got from the parent: what it has to say comes with its batches.
"""

import errno
import logging
import multiprocessing.queues
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, TextIO

import cv2
from torch.utils.data import Dataset

from mgd_ssl.errors import TrainingError, out_of_files
from mgd_ssl.run.parent import end_with_parent

START_METHOD = "fork" if sys.platform == "linux" else None  # None is Python's choice for the system
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
DEAD = re.compile(r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)")

FILES_PER_WORKER, FILES_MORE = 4, 32  # descriptors: pipes to and from a worker; batches under way, what is being read

logger = logging.getLogger("mgd_ssl")


class Note(NamedTuple):
    """A warning or a log record of a worker; plain values, which pass through any queue."""

    level: int  # of the record; 0 for a warning
    text: str
    category: type[Warning] = Warning  # one of Python's own
    filename: str = ""
    line: int = 0


_notes: list[Note] = []  # of this worker, since its last batch
_registry: dict[str | tuple[str, type[Warning], int], int] = {}  # where Python remembers which warnings were shown


class NotingDataset(Dataset[Any]):
    """A data set as a worker sees it: each batch comes with what there is to say."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: Any) -> tuple[Any, list[Note]]:
        batch = self.dataset.__getitems__(keys)  # type: ignore[attr-defined]
        notes = _notes.copy()
        _notes.clear()
        return batch, notes


def start_worker(parent: int) -> None:
    """Make a process a worker: one thread, which ignores signals, as one to the whole job is for the training process,
    which still needs its workers to finish a step; and which ends with the process of pid `parent`."""
    end_with_parent(parent)
    sys.stdout, sys.stderr = _plain(1), _plain(2)
    sys.excepthook = _end_without_files
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]
    cv2.setNumThreads(0)
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    _take_notes()


def _end_without_files(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End a worker that is out of file descriptors: the thread that hands its batches over would go on in vain."""
    if out_of_files(error):
        os._exit(errno.EMFILE)
    sys.__excepthook__(kind, error, trace)


def _give_up(error: Exception, batch: Any) -> None:
    """End a worker that cannot send its batch, which the training process would wait for without end."""
    if out_of_files(error):
        os._exit(errno.EMFILE)
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


def _plain(descriptor: int) -> TextIO:
    """A stream of its own: the one from the parent may be a display, or locked."""
    return open(descriptor, "w", buffering=1, closefd=False, errors="backslashreplace")


def _take_notes() -> None:
    """Keep warnings and log records until a batch takes them along."""
    _notes.clear()
    warnings.showwarning = _note_warning
    for name in list(logging.root.manager.loggerDict):
        known = logging.getLogger(name)
        known.handlers, known.propagate = [], True
    logging.root.handlers = [_Noting()]


def _note_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    builtin = next(one for one in category.__mro__ if one.__module__ == "builtins")  # others may not be picklable
    text = str(message) if builtin is category else f"{category.__name__}: {message}"
    _notes.append(Note(0, text, builtin, filename, lineno))


class _Noting(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        _notes.append(Note(record.levelno, text if record.name == logger.name else f"{record.name}: {text}"))


def tell(notes: list[Note]) -> None:
    """Say in the training process what workers noted, a warning that several of them noted once."""
    for level, text, category, filename, line in notes:
        if level:
            logger.log(level, "%s", text)
        else:
            warnings.warn_explicit(text, category, filename, line, registry=_registry)


def check_room(workers: int) -> None:
    """Raise OSError when there are not enough file descriptors for as many workers; in the middle of starting them
    torch would leave some behind."""
    taken = list[int]()
    try:
        for _ in range(FILES_PER_WORKER * workers + FILES_MORE):
            taken.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in taken:
            os.close(descriptor)


def dead_worker(error: Exception, workers: Sequence[Any]) -> TrainingError | None:
    """The sentence for an error that comes from the end of one of a loader's workers (processes), None for others."""
    if isinstance(error, RuntimeError) and not DEAD.search(str(error)):
        return None
    for worker in workers:
        worker.join(0.1)  # its connections close a little before it is gone
    codes = {worker.pid: worker.exitcode for worker in workers if worker.exitcode}
    if not codes:
        return None
    pid, code = next(iter(codes.items()))
    if code == errno.EMFILE:
        return out_of_files(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return TrainingError(
        f"a data worker (pid {pid}) {how}: is there enough memory for data.workers? "
        "The same command continues from what was saved before"
    )


def kill_leftover(workers: Sequence[Any]) -> None:
    """Kill the workers (processes of a loader that has told them to end) that did not."""
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join()

"""Batches from data workers."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mgd_ssl.data.images import Unreadable
from mgd_ssl.data.order import chunks
from mgd_ssl.data.worker import START_METHOD, NotingDataset, check_room, dead_worker, kill_leftover, start_worker, tell
from mgd_ssl.errors import UserError
from moco.dist import rank, world_size

PREFETCH = 2  # batches under way for each data worker


@contextmanager
def batches(dataset: Dataset[Any], keys: Iterable[Any], workers: int, pin: bool) -> Iterator[Iterator[Any]]:
    """Iterator over the batches of `dataset.__getitems__(key list)`; its workers end with the block.

    Args:
        dataset: with `__getitems__`.
        keys: lists of keys, one a batch.
        workers: processes; 0 decodes in this one. Same batches for any number.
        pin: put batches into pinned memory, for copies to a GPU that do not wait.
    """
    if workers:
        check_room(workers)
    loader = DataLoader(
        NotingDataset(dataset) if workers else dataset,
        batch_sampler=keys,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=partial(_start_worker, os.getpid()),
        multiprocessing_context=START_METHOD if workers else None,
    )
    iterator = iter(loader)
    try:
        yield _told_plainly(_with_notes_told(iterator) if workers else iterator)
    except (RuntimeError, EOFError, ConnectionError) as error:  # a worker that dies is told of wherever this process is
        told = dead_worker(error, iterator._workers) if workers else None  # type: ignore[attr-defined]
        if told is None:
            raise
        raise told from None
    finally:
        # workers ignore SIGTERM, so they must be told to end before the interpreter waits for them
        if workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            kill_leftover(iterator._workers)  # type: ignore[attr-defined]


def _with_notes_told(iterator: Iterator[Any]) -> Iterator[Any]:
    """The batches alone; what their workers noted is said here."""
    for batch, notes in iterator:
        tell(notes)
        yield batch


def _told_plainly(iterator: Iterator[Any]) -> Iterator[Any]:
    """The same batches; a worker's UserError without the traceback the loader puts before it."""
    try:
        yield from iterator
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(parent: int, worker: int) -> None:
    start_worker(parent)


class Account(Protocol):
    """Told of files that cannot be decoded."""

    def note(self, unreadable: Sequence[Unreadable]) -> None:
        """Remember them."""
        ...


class Stop(Protocol):
    """May end the work between two batches."""

    def leaving(self, batches: Iterator[Any], most: int) -> Iterator[Any]:
        """Pass batches on, at most so many on all ranks alike, or raise."""
        ...


@dataclass(frozen=True)
class Reading:
    """How images are gone through once."""

    batch_size: int = 64  # images of a batch
    workers: int = 0  # data processes
    pin: bool = False  # into pinned memory, for copies to a GPU that do not wait
    account: Account | None = None
    stop: Stop | None = None
    progress: Callable[[int], None] = lambda done: None  # told how many of this process's images are done


ONCE = Reading()


@contextmanager
def one_pass(dataset: Dataset[Any], indices: np.ndarray, reading: Reading) -> Iterator[Iterator[Any]]:
    """This rank's part of the images `indices` [n], once, as the batches of `dataset`.

    Ranks take the images in turn. Unreadable ones are noted, and a stop is obeyed between two batches, by all ranks
    after the same one.
    """
    mine = indices[rank() :: world_size()]
    most = math.ceil(math.ceil(len(indices) / world_size()) / reading.batch_size)  # of rank 0, which has most
    with batches(dataset, chunks(mine, reading.batch_size), reading.workers, reading.pin) as loader:
        left = loader if reading.stop is None else reading.stop.leaving(loader, most)
        yield _noted(left, reading)


def _noted(loader: Iterator[Any], reading: Reading) -> Iterator[Any]:
    done = 0
    for batch in loader:
        if reading.account is not None:
            reading.account.note(batch.unreadable)
        yield batch
        done += len(batch.images)
        reading.progress(done)

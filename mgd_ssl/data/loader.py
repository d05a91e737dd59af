"""Batches from data workers."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset

from mgd_ssl.data.worker import START_METHOD, NotingDataset, check_room, dead_worker, kill_leftover, start_worker, tell
from mgd_ssl.errors import UserError

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

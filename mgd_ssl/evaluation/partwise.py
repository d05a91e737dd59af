"""Rows of a table that all ranks compute together, part by part; a stop or a kill loses the part under way."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from mgd_ssl.console import progress_bar
from mgd_ssl.evaluation.unfinished import UnfinishedRows
from mgd_ssl.run.runtime import on_rank_zero
from mgd_ssl.run.stop import StopRequest
from moco.dist import world_size

PART_SECONDS = 20  # of work that a stop may lose
PART_BYTES = 2**28  # of rows held in memory at a time

Progress = Callable[[int], None]  # told how many of this process's rows of a part are done


class Part(NamedTuple):
    """Some rows, the same on all ranks."""

    values: np.ndarray  # [m, d]
    shape: tuple[int, ...]  # of a row, d in all
    unreadable: dict[str, str]  # files among them that could not be read, and why


@dataclass(frozen=True)
class Work:
    """What is to be computed, and how much of it at once."""

    what: str  # for the progress bar
    total: int  # rows
    least: int  # rows of a part, and what their number is a multiple of
    most: int  # rows of a part, in case they are done sooner than in `PART_SECONDS` and smaller than `PART_BYTES`
    compute: Callable[[np.ndarray, StopRequest, Progress], Part]  # on all ranks, of the rows of these numbers
    check: Callable[[dict[str, str]], None] = lambda unreadable: None  # after each part, of all files so far


class Partwise:
    """A table that grows on the disk of rank 0; to be used on all ranks alike, as `opened`."""

    def __init__(self, rows: list[UnfinishedRows]) -> None:
        self._rows = rows  # of rank 0; empty elsewhere

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, key: str, dtype: DTypeLike = np.float32) -> Iterator["Partwise"]:
        """What an earlier command left in a folder under the same key, or nothing yet; closed after the block.

        Raises:
            UserError: when another process writes there.
            DiskError: when it cannot be written, here and in `fill`.
        """
        rows: list[UnfinishedRows] = []
        try:
            on_rank_zero(lambda: rows.append(UnfinishedRows(folder, key, dtype)))
            yield cls(rows)
        finally:
            for each in rows:
                each.close()

    @property
    def rows(self) -> UnfinishedRows:
        """On rank 0."""
        return self._rows[0]

    def discard(self) -> None:
        """On rank 0: remove it."""
        self.rows.discard()

    def fill(self, work: Work) -> None:
        """Compute the rows that are not there yet.

        Raises:
            Interrupted: on all ranks, after a signal.
        """
        done, size = on_rank_zero(lambda: self.rows.done), work.least
        started, earlier = time.monotonic(), done
        with StopRequest().listening() as stop, ExitStack() as stack:
            advance = progress_bar(stack, work.what, math.ceil(work.total / world_size()))
            while done < work.total:
                numbers = np.arange(done, min(done + size, work.total))
                part = work.compute(numbers, stop, _after(advance, done))
                on_rank_zero(partial(self._keep, part))
                done += len(numbers)
                work.check(on_rank_zero(lambda: self.rows.unreadable))
                speed = (done - earlier) / on_rank_zero(lambda: max(time.monotonic() - started, 1e-3))
                most = min(PART_SECONDS * speed, PART_BYTES / max(1, part.values[0].nbytes), work.most)
                size = work.least * max(1, int(most) // work.least)
            stop.finish()

    def _keep(self, part: Part) -> None:
        self.rows.append(*part)


def _after(advance: Progress, done: int) -> Progress:
    return lambda more: advance(math.ceil(done / world_size()) + more)

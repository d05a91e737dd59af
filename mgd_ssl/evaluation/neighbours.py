"""The nearest rows of every row of a table that is larger than memory."""

from dataclasses import dataclass

import numpy as np
import torch

from mgd_ssl.evaluation.features import gathered
from mgd_ssl.evaluation.partwise import Part, Progress, Work
from mgd_ssl.evaluation.search import nearest, queries_at_once
from mgd_ssl.run.stop import StopRequest
from moco.dist import rank, world_size

ASKED = 4096  # rows of a process whose neighbours are looked for in the first part


@dataclass(frozen=True)
class Neighbours:
    """Exact neighbours by inner product; every shard of the table is read once for each part of the rows that ask.

    Args:
        table: [M, D] float32 of unit length, mapped or in memory.
        count: neighbours of each row, below M.
        shard: rows that are compared at once; held are so many of the table, and at most so many that ask.
        device: where to search; None: on a GPU where faiss has one.
    """

    table: np.ndarray
    count: int
    shard: int
    device: torch.device | None = None

    def of(self, rows: np.ndarray, stop: StopRequest | None = None) -> np.ndarray:
        """The neighbours of some rows [m], nearest first, without the row itself: [m, count] int32.

        Args:
            rows: their numbers.
            stop: obeyed between two shards, by all ranks.
        """
        scores = np.full((len(rows), self.count + 1), -np.inf, dtype=np.float32)
        found = np.full((len(rows), self.count + 1), -1, dtype=np.int32)
        starts = range(0, len(self.table), self.shard)
        for start in starts if stop is None else stop.leaving(iter(starts), len(starts)):
            bank = np.ascontiguousarray(self.table[start : start + self.shard])
            k = min(self.count + 1, len(bank))
            at_once = queries_at_once(self.device, k)
            for first in range(0, len(rows), at_once):
                here = slice(first, first + at_once)
                new_scores, new = nearest(bank, np.ascontiguousarray(self.table[rows[here]]), k, self.device)
                both = np.concatenate([scores[here], new_scores], axis=1)
                places = np.concatenate([found[here], new.astype(np.int32) + start], axis=1)
                best = np.argsort(-both, axis=1, kind="stable")[:, : self.count + 1]
                scores[here] = np.take_along_axis(both, best, axis=1)
                found[here] = np.take_along_axis(places, best, axis=1)
        return _without_itself(found, rows)

    def work(self) -> Work:
        """For `Partwise.fill`, over all ranks, which all read the table."""
        most = self.shard * world_size()
        return Work("neighbours", len(self.table), min(ASKED, self.shard) * world_size(), most, self.part)

    def part(self, rows: np.ndarray, stop: StopRequest, progress: Progress) -> Part:
        """Neighbours of some rows, each rank taking its part of them."""
        mine = rows[rank() :: world_size()]
        found = self.of(mine, stop)
        progress(len(mine))
        return Part(gathered(torch.from_numpy(found), len(rows)).numpy(), (self.count,), {})


def _without_itself(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[m, count + 1] -> [m, count]; where equal images have pushed a row out of its own list, the last goes."""
    itself = found == rows[:, None]
    itself[~itself.any(axis=1), -1] = True
    return found[~itself].reshape(len(found), found.shape[1] - 1)

"""What it costs to hand views from a data worker to the training process."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mgd_ssl.bench.timing import Times, interleaved, timed
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.images import Unreadable
from mgd_ssl.data.loader import batches
from mgd_ssl.data.ring import view_batches
from mgd_ssl.data.samples import TwoViews
from mgd_ssl.data.space import Space
from moco import ViewPolicy

BATCH = 32
BYTES = 200e6  # handed over, after a start that is measured alone and subtracted
CPU = torch.device("cpu")


class Copied(TwoViews):
    """Views that are there already, so that only their way to the training process costs something."""

    def __init__(self, size: int) -> None:
        super().__init__(ImageList(Path(), ["none"]), ViewPolicy(), size, 0, "cpu")
        self.views = np.ones((2, BATCH, size, size, 3), np.uint8)

    def fill(self, keys: Sequence[tuple[int, int]], space: Space) -> list[Unreadable]:
        """Copy them."""
        np.copyto(space.views.numpy(), self.views)
        return []


def handover(size: int, rounds: int) -> tuple[float, float]:
    """Microseconds of CPU time an image, of a data worker and of the training process together, to copy views into
    shared memory and out of it again: through the ring, and through fresh memory for every batch."""
    dataset = Copied(size)
    ways = {"ring": partial(_seconds, dataset, True), "fresh": partial(_seconds, dataset, False)}
    times = Times(interleaved(ways, rounds, warmup=0))
    return round(1e6 * times.median("ring"), 1), round(1e6 * times.median("fresh"), 1)


def _seconds(dataset: Copied, ring: bool) -> float:
    """Of an image, without the start of a worker."""
    start, more = 4, max(1, int(BYTES / dataset.views.nbytes))  # batches
    short, long = (timed(partial(_hand_over, dataset, ring, count), _spent)[0] for count in (start, start + more))
    return (long - short) / (more * BATCH)


def _hand_over(dataset: Copied, ring: bool, num_batches: int) -> None:
    keys = [[(0, 0)] * BATCH] * num_batches
    staging = torch.empty_like(torch.from_numpy(dataset.views))
    way = view_batches(dataset, keys, BATCH, 1, CPU) if ring else batches(dataset, keys, 1, pin=False)
    with way as iterator:
        for batch in iterator:
            staging[0].copy_(batch.im_q)
            staging[1].copy_(batch.im_k)


def _spent() -> float:
    """A clock: CPU seconds of this process and of its workers that have ended."""
    import resource  # which Windows does not have

    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)

"""The order images are seen in, and parts of them: functions of the seed."""

from collections.abc import Iterator

import numpy as np

from mgd_ssl.errors import UserError
from moco.keyed import keyed_generator


class TrainingOrder:
    """Keys (epoch, index) of this rank's part of every global batch, from a step on to the end of the run.

    The order of an epoch is a function of (seed, epoch); what is left over at its end is dropped. The global batch
    of a step does not depend on the number of processes.
    """

    def __init__(
        self, num_images: int, batch_size: int, epochs: int, seed: int, first_step: int, rank: int, world_size: int
    ) -> None:
        self.num_images, self.batch_size, self.epochs, self.seed = num_images, batch_size, epochs, seed
        self.first_step, self.rank, self.world_size = first_step, rank, world_size
        self.steps_per_epoch = num_images // batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch, part in self.parts():
            yield [(epoch, int(index)) for index in part]

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """The epoch and the indices of every part."""
        local = self.batch_size // self.world_size
        first_epoch, first = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            order = keyed_generator(self.seed, "order", epoch).permutation(self.num_images)
            for step in range(first, self.steps_per_epoch):
                start = step * self.batch_size + self.rank * local
                yield epoch, order[start : start + local]
            first = 0

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step


def chunks(indices: np.ndarray, size: int) -> list[list[int]]:
    """Consecutive lists of at most `size` indices."""
    return [indices[start : start + size].tolist() for start in range(0, len(indices), size)]


def subset(num_images: int, count: int, seed: int, purpose: str) -> np.ndarray:
    """Sorted indices of at most `count` images, a function of (seed, purpose)."""
    if count >= num_images:
        return np.arange(num_images)
    return np.sort(keyed_generator(seed, purpose).choice(num_images, size=count, replace=False, shuffle=False))


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Sorted rows of the given share of every class, at least one and never all: a function of the arguments.

    Raises:
        UserError: when no class has two images.
    """
    if share == 0:
        return np.empty(0, dtype=np.int64)
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        order = keyed_generator(seed, "held out", int(label)).permutation(len(rows))
        chosen.append(rows[order[:count]])
    if not (rows := np.sort(np.concatenate(chosen))).size:
        raise UserError("every class has a single training image, so none can be held out: add images")
    return rows


def few_labels(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Sorted indices of a share of each class, at least one image of it; a function of (labels, share, seed).

    The subset of a smaller share lies within that of a larger one.

    Args:
        labels: [n] class index of every image.
        share: between 0 and 1.
        seed: which subset.
    """
    chosen = []
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        order = keyed_generator(seed, "few labels", int(label)).permutation(len(members))
        chosen.append(members[order[: max(1, round(share * len(members)))]])
    return np.sort(np.concatenate(chosen))

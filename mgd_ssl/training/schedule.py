"""When the learning rate and the matching change."""

import math
from collections.abc import Sequence


def learning_rate(step: int, steps_per_epoch: int, epochs: int, peak: float, warmup_epochs: float, by: str) -> float:
    """Learning rate of a step: linear warm-up from a thousandth of the peak, then a cosine to 0.

    The cosine runs over all epochs, warm-up included, as in the published program.

    Args:
        step: from 0.
        steps_per_epoch: steps in a pass over the data.
        epochs: length of the run.
        peak: learning rate the warm-up leads to.
        warmup_epochs: length of the warm-up.
        by: "step", or "epoch" for the published staircase.
    """
    epoch = step / steps_per_epoch if by == "step" else step // steps_per_epoch
    if epoch < warmup_epochs:
        return peak * (0.001 + 0.999 * epoch / warmup_epochs)
    return peak * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def chosen_matching_epochs(chosen: Sequence[int] | None, epochs: int) -> tuple[int, ...]:
    """Epochs after which the matching is updated: those chosen, none of them for an empty list; None: the published."""
    return matching_epochs(epochs) if chosen is None else tuple(chosen)


def matching_epochs(epochs: int) -> tuple[int, ...]:
    """Epochs after which the matching is updated: `ceil(logspace(0, 2.1, 10))` for the published 200.

    For another length the last update keeps its place, 63 % of the way: 10 ** 2.1 of 200 epochs.
    """
    last = math.log10(max(1.0, 10**2.1 * epochs / 200))
    updates = {math.ceil(round(10 ** (last * i / 9), 9)) for i in range(10)}
    return tuple(sorted(epoch for epoch in updates if epoch < epochs))

"""When the learning rate and the matching change."""

import math


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

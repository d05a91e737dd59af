"""Learning rates over the steps of a run."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up from a thousandth of the peak, then a cosine to 0.

    The cosine runs over all epochs, warm-up included, as in the published program.
    """

    peak: float  # learning rate the warm-up leads to
    epochs: int  # length of the run
    steps_per_epoch: int
    warmup_epochs: float = 0.0
    by: Literal["step", "epoch"] = "step"  # epoch: the published staircase

    def __call__(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        epoch = step / self.steps_per_epoch if self.by == "step" else step // self.steps_per_epoch
        if epoch < self.warmup_epochs:
            return self.peak * (0.001 + 0.999 * epoch / self.warmup_epochs)
        return self.peak * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))

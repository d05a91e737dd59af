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


@dataclass(frozen=True)
class Milestones:
    """The warm-up of a schedule, then steps down in place of its cosine."""

    warmup: WarmupCosine
    milestones: tuple[int, ...]  # epochs from which on it is another `factor` lower
    factor: float

    def __call__(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        epoch = step // self.warmup.steps_per_epoch
        if step / self.warmup.steps_per_epoch < self.warmup.warmup_epochs:
            return self.warmup(step)
        return self.warmup.peak * self.factor ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class WarmupDecay:
    """Linear warm-up over whole epochs, then steps down, a power of what is left, or a cosine, as supervised training
    has them; steps down and powers by epoch."""

    peak: float  # learning rate the warm-up leads to
    epochs: int  # length of the run
    steps_per_epoch: int
    shape: Literal["milestones", "poly", "cosine"] = "milestones"
    milestones: tuple[int, ...] = ()  # epochs from which on it is another `factor` lower, counted from 0
    factor: float = 0.1
    power: float = 0.9  # of poly
    warmup_epochs: int = 0
    warmup_start: float = 0.1  # share of the peak in the first epoch

    def __call__(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        epoch = step // self.steps_per_epoch
        if epoch < self.warmup_epochs:
            return self.peak * (self.warmup_start + (1 - self.warmup_start) * epoch / self.warmup_epochs)
        if self.shape == "milestones":
            return self.peak * self.factor ** sum(epoch >= milestone for milestone in self.milestones)
        if self.shape == "poly":
            return self.peak * (1 - epoch / self.epochs) ** self.power
        warm = self.warmup_epochs * self.steps_per_epoch
        share = (step - warm) / max(1, self.epochs * self.steps_per_epoch - warm)
        return self.peak * 0.5 * (1 + math.cos(math.pi * share))

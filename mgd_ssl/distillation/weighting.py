"""How much a term counts: by a schedule over the run, and held to a share of another loss's gradient."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moco.dist import sum_over_ranks, world_size

HALF = 1024.0  # by which losses are multiplied while gradients in half precision are looked at


@dataclass(frozen=True)
class Weight:
    """Factor of a term by the epochs done.

    Args:
        value: of the factor when the term sets in.
        schedule: how it goes down to `final_share` of it.
        final_share: what is left at `until`.
        since: epochs before the term sets in; the factor is 0 until then.
        until: epochs from which on it is 0 again.
        balance: share of the gradient of the loss it is balanced with that it is held to; None: not at all.
    """

    value: float
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_share: float = 0.0
    since: float = 0.0
    until: float = math.inf
    balance: float | None = None

    def __call__(self, epoch: float) -> float:
        """At so many epochs; schedules other than constant need an `until`."""
        if not self.since <= epoch < self.until:
            return 0.0
        if self.schedule == "constant":
            return self.value
        gone = (epoch - self.since) / (self.until - self.since)
        left = 1 - gone if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone))
        return self.value * (self.final_share + (1 - self.final_share) * left)


def gradient_norms(losses: Mapping[str, Tensor], places: Sequence[Tensor]) -> dict[str, Tensor]:
    """Norm of the gradient of every loss with respect to some tensors together, of the whole batch over all ranks.

    Args:
        losses: scalars, means over this rank's images.
        places: tensors in their graphs; one that a loss does not depend on counts as 0.
    """
    scale = HALF if places[0].dtype == torch.float16 else 1.0
    squares = []
    for loss in losses.values():
        found: Sequence[Tensor | None] = [None]
        if loss.requires_grad:
            found = torch.autograd.grad(scale * loss, places, retain_graph=True, allow_unused=True)
        parts = [(part.float() / scale).square().sum() for part in found if part is not None]
        squares.append(torch.stack(parts).sum() if parts else loss.new_zeros(()))
    whole = sum_over_ranks(torch.stack(squares))
    return dict(zip(losses, whole.sqrt() / world_size(), strict=True))

"""Short trainings that end about where long ones with the same learning rate would.

A search cannot afford to train every head all the way, and a head that is merely trained for fewer steps behaves as one
with a smaller learning rate: the largest always wins. So each step is made as long as the steps of the whole training
it stands for. Gradient descent with learning rate lr and momentum m, along a direction in which the loss has
curvature h, takes a share r = lr * h / (1 - m) off the distance to the optimum with every step; k steps take off
1 - (1 - r)^k, which is what one with learning rate lr * (1 - (1 - r)^k) / r does. Where r is small that is k * lr,
which would be unstable everywhere else; where r is 1 or more it is lr. The curvature is that of cross entropy, taken as
a constant times the variance of the features along their principal directions.

Shapes: H heads, d features.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from moco.dist import broadcast, sum_over_ranks

ROWS_PER_DIMENSION = 32  # of a table; more do not change what is learnt about its spectrum


class Basis(NamedTuple):
    """Principal directions of features."""

    vectors: Tensor  # [d, d], one in a column
    variances: Tensor  # [d] of the features along them


def principal(batches: Iterable[tuple[Tensor, Tensor]], dim: int, device: torch.device) -> Basis:
    """Directions in which features of zero mean are uncorrelated, equal on all ranks.

    Args:
        batches: this rank's part of the features [N, d], and something that is not used.
        dim: d.
        device: where they are.
    """
    moments, count = torch.zeros(dim, dim, dtype=torch.float64, device=device), torch.zeros(1, device=device)
    for x, _ in batches:
        moments += x.T @ x
        count += len(x)
    variances, vectors = torch.linalg.eigh(sum_over_ranks(moments) / sum_over_ranks(count))
    # two libraries may choose different signs, so one process decides
    return Basis(broadcast(vectors.float().contiguous()), broadcast(variances.float().clamp_(min=0)))


class Stretch(NamedTuple):
    """How long the steps of a training are."""

    times: float  # steps of the whole training that each stands for
    curvature: float  # of the loss along features of variance 1
    variances: Tensor  # [d] of the features, which are uncorrelated

    def lengths(self, lr: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
        """Learning rates of the weights [H, d] and of the bias [H] that stand for `lr` [H]."""
        lr = lr[:, None]
        along = torch.cat([self.variances, self.variances.new_ones(1)])  # the bias is the weight of a feature that is 1
        share = lr * self.curvature * along / (1 - momentum)
        times = -torch.expm1(self.times * torch.log1p(-share)) / share  # not a number outside of 0 < share < 1
        lengths = lr * torch.where(share <= 0, self.times, torch.where(share < 1, times, 1.0))
        return lengths[:, :-1], lengths[:, -1]

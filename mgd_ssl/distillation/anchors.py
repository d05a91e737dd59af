"""Similarities to very many anchors, of which sums alone are wanted: what every loss with a queue is made of.

The softmax over a queue is needed for its normaliser, and for the gradient of that, which is the mean anchor under it.
Both come from one way through the queue, part by part so that a part stays in the processor's cache, with the largest
similarity so far taken off (https://arxiv.org/abs/1805.02867): a table [N, K] is neither held nor read again in the
backward pass.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

ROWS_AT_ONCE = 2048  # anchors of a part on a CPU; elsewhere all are one part, which takes the fewest launches
# logarithm of a share of the largest: below all rounding, and above where floats lose digits (denormals), with which a
# product takes ten times as long
LOWEST = -60.0


class Anchored(NamedTuple):
    """Where rows stand among the anchors."""

    total: Tensor  # [N] logarithm of the sum of the exponentials of their similarities, with gradient
    mean: Tensor  # [N, D] mean of the anchors under the softmax of the similarities, without gradient
    nearest: Tensor  # [N] largest similarity, without gradient


def anchored(rows: Tensor, anchors: Tensor) -> Anchored:
    """Compare rows with all anchors.

    Args:
        rows: [N, D] float32, divided by the softmax's temperature already.
        anchors: [K, D] float32, without gradient; to be left alone until the call returns, not until the backward pass.
    """
    return Anchored(*cast(tuple[Tensor, Tensor, Tensor], _Anchored.apply(rows, anchors)))


class _Anchored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nearest = rows.new_full((len(rows), 1), -torch.inf)
        total, mean = torch.zeros_like(nearest), torch.zeros_like(rows)
        for part in anchors.split(len(anchors) if rows.is_cuda else ROWS_AT_ONCE):
            similarity = rows @ part.T  # [N, k]
            nearer = torch.maximum(nearest, similarity.amax(dim=1, keepdim=True))
            kept = (nearest - nearer).exp_()  # of what was summed before
            shares = similarity.sub_(nearer).clamp_min_(LOWEST).exp_()
            total = total.mul_(kept).add_(shares.sum(dim=1, keepdim=True))
            mean = mean.mul_(kept).addmm_(shares, part)
            nearest = nearer
        mean = mean.div_(total)
        ctx.save_for_backward(mean)
        nearest = nearest[:, 0]
        ctx.mark_non_differentiable(mean, nearest)
        return total[:, 0].log() + nearest, mean, nearest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None]:
        (mean,) = ctx.saved_tensors
        return gradient[:, None] * mean, None

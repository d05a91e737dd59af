"""The distillation loss: partial L2 distance to a margin-ReLU target.

Section 3.3 of "A Comprehensive Overhaul of Feature Distillation" (https://arxiv.org/abs/1904.01866), used by
Matching Guided Distillation.
"""

from typing import Any

import torch
from torch import Tensor


def partial_l2(student_map: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    """Squared distance to `max(target, margin)`, but none where both are on the negative side already.

    A value counts if the student is above its target or the target is positive: a student below a negative target
    gives the same zero after the ReLU. Gradient flows to the student alone.

    Args:
        student_map: [N, C_s, H, W] float32.
        target: [N, C_s, H, W] reduced teacher map, without gradient.
        margin: [C_s], at most 0.

    Returns:
        Scalar sum over all elements.
    """
    loss: Tensor = _PartialL2.apply(student_map, target, margin)
    return loss


class _PartialL2(torch.autograd.Function):
    """The same with one tensor kept for the backward pass instead of five: the distances that count."""

    @staticmethod
    def forward(ctx: Any, student_map: Tensor, target: Tensor, margin: Tensor) -> Tensor:
        clipped = target.maximum(margin[:, None, None])
        distance = student_map - clipped
        # target > 0 exactly where clipped > 0, since a margin is never positive
        distance = torch.where((distance <= 0) & (clipped <= 0), 0.0, distance)
        ctx.save_for_backward(distance)
        return distance.square().sum(dim=(0, 2, 3)).sum()  # by channel first: then no kernel reads the maps across

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (distance,) = ctx.saved_tensors
        return distance * (2 * gradient), None, None

"""Margins of the margin ReLU: how far below zero a teacher channel's negative values are asked to be followed.

MGD takes them over from "A Comprehensive Overhaul of Feature Distillation" (section 3.2,
https://arxiv.org/abs/1904.01866): the expected value of a channel over its negative part.
"""

import math

import torch
from torch import Tensor

# Below this probability of a negative value the published code uses three standard deviations instead of the
# expectation, whose formula loses its digits there.
RARELY_NEGATIVE = 1e-3


def relu_margin(gamma: Tensor, beta: Tensor) -> Tensor:
    """Expectation E[x | x < 0] of every channel of a BatchNorm whose output is taken as N(beta, gamma^2).

    Args:
        gamma: [C] weight of the BatchNorm; its sign does not matter, zero means a constant channel.
        beta: [C] bias of the BatchNorm.

    Returns:
        [C] margins in the dtype of `gamma`, at most 0: `beta - |gamma| phi(beta/|gamma|) / Phi(-beta/|gamma|)`,
        or `-3 |gamma|` where a negative value is rarer than 1 in 1000; for a constant channel the constant
        if it is negative, else 0.

    Raises:
        ValueError: when the two are not vectors of one length or hold a value that is not finite.
    """
    if gamma.ndim != 1 or gamma.shape != beta.shape:
        raise ValueError(f"gamma is {list(gamma.shape)} and beta {list(beta.shape)}: pass two vectors of one length")
    if not (torch.isfinite(gamma).all() and torch.isfinite(beta).all()):
        raise ValueError("gamma or beta holds a value that is not finite: load a whole teacher first")
    std, mean = gamma.detach().double().abs(), beta.detach().double()
    z = mean / std.clamp_min(torch.finfo(torch.float64).tiny)
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    negative = torch.special.ndtr(-z)
    expectation = mean - std * density / negative.clamp_min(torch.finfo(torch.float64).tiny)
    margin = torch.where(negative > RARELY_NEGATIVE, expectation, -3 * std)
    return torch.where(std == 0, mean.clamp_max(0), margin).to(gamma.dtype)


class MeasuredMargin:
    """Mean of the negative part of every channel, as seen over images: margins for networks without BatchNorm.

    Args:
        num_channels: C_t.
        device: where to accumulate.
    """

    def __init__(self, num_channels: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(num_channels, dtype=torch.float64, device=device)  # [C_t]
        self.count = torch.zeros(num_channels, dtype=torch.float64, device=device)  # [C_t]

    @torch.no_grad()
    def update(self, teacher_map: Tensor) -> None:
        """Add the values of a pre-ReLU map [N, C_t, H, W]."""
        self.total += teacher_map.clamp_max(0).double().sum(dim=(0, 2, 3))
        self.count += (teacher_map < 0).sum(dim=(0, 2, 3))

    def margin(self) -> Tensor:
        """[C_t] float32 margins; 0 for a channel that was never negative."""
        return (self.total / self.count.clamp_min(1)).float()

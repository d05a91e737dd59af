"""A box of one image laid into another, as BINGO mixes the two of a bag."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from moco.keyed import keyed_generator

BETA = 2.0  # both parameters of the distribution that the share of the kept image is drawn from


class Box(NamedTuple):
    """Rows and columns that are replaced; empty where both ends are equal."""

    top: int
    bottom: int  # the last row plus one
    left: int
    right: int  # the last column plus one

    def kept(self, height: int, width: int) -> float:
        """Share of an image that stays."""
        return 1 - (self.bottom - self.top) * (self.right - self.left) / (height * width)


def box_around(row: int, column: int, height: int, width: int, share: float) -> Box:
    """CutMix (https://arxiv.org/abs/1905.04899): a box of the image's shape that would leave a share of it, cut off at
    the edges.

    Args:
        row: of the centre.
        column: of the centre.
        height: of the image.
        width: of the image.
        share: of the image that is to stay, before the cut at the edges.
    """
    edge = math.sqrt(1 - share)
    half_height, half_width = int(height * edge) // 2, int(width * edge) // 2
    return Box(
        max(0, row - half_height), min(height, row + half_height),
        max(0, column - half_width), min(width, column + half_width),
    )  # fmt: skip


def drawn_box(seed: int, step: int, size: int) -> Box:
    """The box of a step, the same for all images and ranks, for images of `size` x `size`."""
    generator = keyed_generator(seed, "mix", step)
    share = float(generator.beta(BETA, BETA))
    row, column = generator.integers(size, size=2).tolist()
    return box_around(row, column, size, size, share)


def mixed(images: Tensor, others: Tensor, box: Box) -> Tensor:
    """Images [N, 3, H, W] with the box of the others."""
    inside = torch.zeros(images.shape[2:], dtype=torch.bool, device=images.device)
    inside[box.top : box.bottom, box.left : box.right] = True
    return torch.where(inside, others, images)

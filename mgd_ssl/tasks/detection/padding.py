"""What is image and what is padding in a batch, and Matching Guided Distillation that leaves padding out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.distillation.term import Seen
from mgd_ssl.mgd.mgd import Target
from mgd_ssl.networks.normalisation import USUAL, Normalisation


def valid_positions(sizes: Tensor, batch: Sequence[int], map_: Sequence[int]) -> Tensor:
    """Which positions of a map lie on the image.

    Args:
        sizes: [N, 2] height and width of every image in pixels.
        batch: height and width of the padded images.
        map_: of the map, which covers them.

    Returns:
        [N, 1, H, W] bool: true where a position's first pixel is one of the image.
    """
    rows, columns = (
        torch.arange(count, device=sizes.device) * (edge // count) for edge, count in zip(batch, map_, strict=True)
    )
    inside = (rows[:, None] < sizes[:, :1, None]) & (columns < sizes[:, 1:, None])  # [N, H, W]
    return inside[:, None]


def padded_for(own: Normalisation, images: Tensor, sizes: Tensor) -> Tensor:
    """Images whose padding is 0 for a network with another normalisation, as it was when that network was trained.

    Args:
        own: of the network, which changes ours into it.
        images: [N, 3, H, W] with our normalisation, 0 where they are padded.
        sizes: [N, 2] height and width of each.
    """
    if own == USUAL:
        return images
    own_mean, mean, std = (images.new_tensor(values)[:, None, None] for values in (own.mean, *USUAL))
    inside = valid_positions(sizes, images.shape[2:], images.shape[2:])
    return torch.where(inside, images, (own_mean - mean) / std)


@dataclass
class PaddedSeen(Seen):
    """What was seen of padded images."""

    valid: list[Tensor] = field(default_factory=list)  # [N, 1, H, W] of every tapped stage; none: padding counts


class PaddedMaps(MatchedMaps):
    """`MatchedMaps` whose loss is of the valid positions alone where they are given."""

    def prepare(self, teacher: Seen, step: int) -> list[Target]:
        """The teacher's maps, reduced; zero, as the student's will be, where there is padding."""
        targets = super().prepare(teacher, step)
        valid = teacher.valid if isinstance(teacher, PaddedSeen) else []
        if not valid:
            return targets
        return [
            Target(target.map * inside, target.margin, inside) for target, inside in zip(targets, valid, strict=True)
        ]


def masked(maps: Sequence[Tensor], valid: Sequence[Any]) -> list[Tensor]:
    """Maps that are zero at padding, so that it adds nothing to their norms and products."""
    return [map_ * inside for map_, inside in zip(maps, valid, strict=True)]

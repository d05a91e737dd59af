"""Shuffled BatchNorm: mix the key batch over the ranks before encoding, and undo it afterwards.

BatchNorm statistics of a query batch and of its keys would otherwise come from the same images, and the
network could tell a positive by them (MoCo, section 3.3 "Shuffling BN", https://arxiv.org/abs/1911.05722).
"""

import torch
from torch import Tensor

from moco.dist import gather_batch, rank, world_size


def permutation(num_images: int, seed: int) -> Tensor:
    """Permutation [num_images] that every rank draws alike: a function of `seed` alone, no broadcast needed."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))


def shuffle_batch(local: Tensor, order: Tensor) -> Tensor:
    """This rank's part of the permuted global batch.

    Args:
        local: [n, ...], the same n on every rank.
        order: [n * world_size] permutation, the same on every rank.

    Returns:
        [n, ...]; in one process the batch as it is, since the order of a batch does not change its statistics.
    """
    if world_size() == 1:
        return local
    mine = order.view(world_size(), -1)[rank()].to(local.device, non_blocking=True)  # [n]
    return gather_batch(local)[mine]


def unshuffle_batch(local: Tensor, order: Tensor) -> Tensor:
    """Undo `shuffle_batch`: [n, ...] in shuffled order -> [n, ...] in this rank's own order."""
    if world_size() == 1:
        return local
    mine = torch.argsort(order).view(world_size(), -1)[rank()].to(local.device, non_blocking=True)  # [n]
    return gather_batch(local)[mine]

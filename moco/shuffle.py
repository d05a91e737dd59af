"""Shuffled BatchNorm: mix the key batch over the ranks before encoding, and undo it afterwards.

BatchNorm statistics of a query batch and of its keys would otherwise come from the same images, and the
network could tell a positive by them (MoCo, section 3.3 "Shuffling BN", https://arxiv.org/abs/1911.05722).
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from moco.device import uploaded
from moco.dist import rank, world_size


def permutation(num_images: int, seed: int) -> Tensor:
    """Permutation [num_images] that every rank draws alike: a function of `seed` alone, no broadcast needed."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))


def shuffle_batch(local: Tensor, order: Tensor, num_splits: int = 1) -> Tensor:
    """This rank's part of the permuted global batch.

    Args:
        local: [n, ...], the same n on every rank.
        order: [n * world_size] permutation, the same on every rank.
        num_splits: parts of a rank's batch over which BatchNorm is computed apart (see `split_norm.py`).

    Returns:
        [n, ...]; the batch as it is where there is one part in all, whose order does not change its statistics.
    """
    return local if world_size() * num_splits == 1 else exchange(local, order)


def unshuffle_batch(local: Tensor, order: Tensor, num_splits: int = 1) -> Tensor:
    """Undo `shuffle_batch`: [n, ...] in shuffled order -> [n, ...] in this rank's own order."""
    return local if world_size() * num_splits == 1 else exchange(local, torch.argsort(order))


class Routes(NamedTuple):
    """Which rows a rank sends and receives so that a global batch is permuted."""

    sent: Tensor  # [n] rows of its own, grouped by receiver
    send_counts: list[int]  # to every rank
    receive_counts: list[int]  # from every rank
    place: Tensor  # [n] where in the order of arrival the rows it wants are


def routes(order: Tensor, n: int, count: int, me: int) -> Routes:
    """Routes of one rank.

    Args:
        order: [n * count] permutation of the rows of the global batch.
        n: rows of a rank.
        count: number of ranks.
        me: this rank.
    """
    wanted = order.view(count, n)  # [W, n] rows each rank gets
    owner = wanted // n  # [W, n] ranks that have them
    return Routes(
        sent=wanted[owner == me] - me * n,
        send_counts=(owner == me).sum(dim=1).tolist(),
        receive_counts=torch.bincount(owner[me], minlength=count).tolist(),
        place=torch.argsort(torch.argsort(owner[me], stable=True)),
    )


@torch.no_grad()
def exchange(local: Tensor, order: Tensor) -> Tensor:
    """Rows `order` [n * world_size] of the global batch, each rank getting n of them in turn: [n, ...].

    Every row goes to the one rank that wants it. MoCo gathers all rows on all ranks, and each of them then receives
    the global batch: 154 MB a step at its 256 images of 224 pixels, and ever more with more GPUs.
    """
    pixels_last = local.dim() == 4 and local.is_contiguous(memory_format=torch.channels_last)
    rows = (local.movedim(1, -1) if pixels_last else local).contiguous()  # whole rows are moved as they lie
    if world_size() == 1:
        found = rows[uploaded(order, rows.device)]
    else:
        way = routes(order, local.shape[0], world_size(), rank())
        received = torch.empty_like(rows)
        sent = rows[uploaded(way.sent, rows.device)]
        dist.all_to_all_single(received, sent, way.receive_counts, way.send_counts)
        found = received[uploaded(way.place, rows.device)]
    return found.movedim(-1, 1) if pixels_last else found

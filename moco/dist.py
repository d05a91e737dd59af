"""Rank, world size and collectives that are the identity in one process.

Nothing here starts a process group: that is the business of the program, and with one process there is none.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether a process group with at least one rank has been initialised."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Rank of this process, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


@torch.no_grad()
def gather_batch(local: Tensor) -> Tensor:
    """Concatenate a tensor of equal shape from all ranks, in rank order: [n, ...] -> [n * world_size, ...].

    Carries no gradient, as in MoCo (Algorithm 1 detaches the keys).
    """
    if world_size() == 1:
        return local
    gathered = local.new_empty((world_size() * local.shape[0], *local.shape[1:]))
    dist.all_gather_into_tensor(gathered, local.contiguous())
    return gathered


@torch.no_grad()
def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place; returns it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


@torch.no_grad()
def max_over_ranks(values: Tensor) -> Tensor:
    """Take the largest of every element over all ranks, in place; returns it."""
    if world_size() > 1:
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


@torch.no_grad()
def broadcast(values: Tensor) -> Tensor:
    """Overwrite a tensor on every rank with that of rank 0, in place; returns it."""
    if world_size() > 1:
        dist.broadcast(values, src=0)
    return values

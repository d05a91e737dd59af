"""MoCo v1/v2: query encoder, momentum (EMA) key encoder and a queue of keys.

Written from Algorithm 1 of https://arxiv.org/abs/1911.05722 and https://arxiv.org/abs/2003.04297 (MLP head).
State-dict names are the official ones: `encoder_q.*`, `encoder_k.*`, `queue` [dim, K], `queue_ptr` [1].
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.dist import gather_batch, world_size
from moco.shuffle import permutation, shuffle_batch, unshuffle_batch
from moco.split_norm import split_batch_norms


class MoCoOutput(NamedTuple):
    """What one forward pass yields; hand `keys` to `MoCo.enqueue` after the backward pass."""

    logits: Tensor  # [N, 1 + K], the positive first, divided by the temperature
    labels: Tensor  # [N] zeros: the positive is entry 0
    keys: Tensor  # [N, dim] L2-normalised keys of this rank, without gradient


def projection_head(in_features: int, dim: int, hidden: int | None = None) -> nn.Sequential:
    """The MLP head of MoCo v2: Linear, ReLU, Linear; keys `0.*` and `2.*` as in the official checkpoints.

    Args:
        in_features: width of the backbone's pooled features.
        dim: size of the embedding.
        hidden: width of the hidden layer, `in_features` when None (as published).
    """
    hidden = hidden or in_features
    return nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, dim))


class MoCo(nn.Module):
    """Momentum contrast of two views of the same images.

    Args:
        encoder: maps [N, 3, H, W] to [N, dim]; becomes `encoder_q`, a copy of it `encoder_k`.
        dim: size of the embedding.
        queue_size: number of negative keys K; must be a multiple of the global batch.
        momentum: share of the key encoder that survives an update, in [0, 1).
        temperature: softmax temperature, above 0.
        seed: of the random unit vectors that fill the queue before the first keys.
        bn_splits: parts of each process's batch over which the encoders' BatchNorms are computed apart, with the keys
            shuffled over all parts; several let one process compute what as many processes would.

    Raises:
        ValueError: for a size or factor out of its range.
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        seed: int = 0,
        bn_splits: int = 1,
    ) -> None:
        super().__init__()
        if bn_splits < 1:
            raise ValueError(f"bn_splits is {bn_splits}: choose 1, or the number of parts of a batch")
        if dim < 1 or queue_size < 1:
            raise ValueError(f"dim is {dim} and queue_size is {queue_size}: both must be at least 1")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}: choose a value in [0, 1), published is 0.999")
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}: choose a value above 0, MoCo v2 uses 0.2")
        self.momentum = momentum
        self.temperature = temperature
        self.bn_splits = bn_splits

        if bn_splits > 1:
            split_batch_norms(encoder, bn_splits)
        self.encoder_q = encoder
        self.encoder_k = copy.deepcopy(encoder)
        for parameter in self.encoder_k.parameters():
            parameter.requires_grad_(False)  # the key encoder follows by EMA, not by gradient

        generator = torch.Generator().manual_seed(seed)
        keys = torch.randn(dim, queue_size, generator=generator)
        self.register_buffer("queue", F.normalize(keys, dim=0))  # [dim, K]
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))  # [1]

    def forward(self, im_q: Tensor, im_k: Tensor, shuffle_seed: int = 0) -> MoCoOutput:
        """Compare every query with its key and with the whole queue.

        Args:
            im_q: [N, 3, H, W] query views.
            im_k: [N, 3, H, W] key views of the same images.
            shuffle_seed: picks the permutation of shuffled BatchNorm; equal on all ranks, another one each step.
        """
        # queries
        q = F.normalize(self.encoder_q(im_q), dim=1)  # [N, dim]

        # keys, without gradient
        with torch.no_grad():
            self.update_key_encoder()
            k = self.encode_keys(im_k, shuffle_seed)  # [N, dim]

        # positive logits against the own key, negative ones against the queue, in float32: in half precision many tie
        with torch.autocast(q.device.type, enabled=False):
            positive = torch.einsum("nc,nc->n", q.float(), k.float()).unsqueeze(1)  # [N, 1]
            negative = q.float() @ self.queue  # [N, K]
        logits = torch.cat([positive, negative], dim=1).div_(self.temperature)  # [N, 1 + K]
        labels = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
        return MoCoOutput(logits, labels, k)

    @torch.no_grad()
    def encode_keys(self, im_k: Tensor, shuffle_seed: int) -> Tensor:
        """Keys [N, dim] of the key views, encoded in shuffled order."""
        order = permutation(im_k.shape[0] * world_size(), shuffle_seed)  # [G]
        k = self.encoder_k(shuffle_batch(im_k, order, self.bn_splits))
        return unshuffle_batch(F.normalize(k, dim=1), order, self.bn_splits)

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """EMA over the parameters (BatchNorm statistics are the key encoder's own): k = m k + (1 - m) q."""
        keys: list[Tensor] = list(self.encoder_k.parameters())
        queries: list[Tensor] = list(self.encoder_q.parameters())
        if keys[0].is_cuda:  # few launches
            torch._foreach_mul_(keys, self.momentum)
            torch._foreach_add_(keys, torch._foreach_mul(queries, 1 - self.momentum))
        else:  # one tensor at a time, so that it stays in the cache
            for key, query in zip(keys, queries, strict=True):
                key.mul_(self.momentum).add_(query * (1 - self.momentum))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by those of all ranks.

        Call it after the backward pass: the queue takes part in the gradient of the logits, and writing to it
        earlier would force a copy of it (33 MB at the published size) every step.

        Args:
            keys: [N, dim] of this rank.

        Raises:
            ValueError: when the queue is no multiple of the global batch.
        """
        keys = gather_batch(keys).to(self.queue.dtype)  # [G, dim]
        queue_size, count = self.queue.shape[1], keys.shape[0]
        if queue_size % count:
            raise ValueError(f"queue size {queue_size} is not a multiple of the global batch {count}: change either")
        # the position stays on the device: reading it would wait for the GPU every step
        columns = self.queue_ptr + torch.arange(count, device=keys.device)  # [G], never wraps within a batch
        self.queue.index_copy_(1, columns, keys.T)
        self.queue_ptr.add_(count).remainder_(queue_size)

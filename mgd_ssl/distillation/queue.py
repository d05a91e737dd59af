"""A queue of rows that earlier batches left: the anchors or negatives of a term."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.dist import gather_batch


class Queue(nn.Module):
    """The newest rows of all ranks; its content and place are buffers, so they are in the checkpoint.

    Args:
        width: D of a row.
        size: K rows, at first random unit vectors.
        seed: of those.
    """

    rows: Tensor
    ptr: Tensor

    def __init__(self, width: int, size: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("rows", F.normalize(torch.randn(size, width, generator=generator), dim=1))  # [K, D]
        self.register_buffer("ptr", torch.zeros(1, dtype=torch.long))  # [1] where the next row goes

    @torch.no_grad()
    def put(self, rows: Tensor) -> None:
        """Replace the oldest rows by those of all ranks, after the backward pass that the queue takes part in.

        Args:
            rows: [N, D] of this rank.

        Raises:
            ValueError: when there are more than fit.
        """
        rows = gather_batch(rows).to(self.rows.dtype)  # [G, D]
        size, count = len(self.rows), len(rows)
        if count > size:
            raise ValueError(f"a queue of {size} rows is given {count} at once: enlarge it")
        # the position stays on the device: reading it would wait for the GPU every step
        self.rows.index_copy_(0, (self.ptr + torch.arange(count, device=rows.device)) % size, rows)
        self.ptr.add_(count).remainder_(size)

"""Whether a network still tells images apart, seen without labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

ONE_DIRECTION = 1.5  # effective rank below which embeddings lie along a line
ONE_POINT = 0.01  # spread below which they are one point


@torch.no_grad()
def effective_rank(rows: Tensor) -> Tensor:
    """RankMe (https://arxiv.org/abs/2210.02885): exponential of the entropy of the singular values of rows [N, d].

    At most N and d; 1 when all rows lie along one direction.
    """
    values = torch.linalg.svdvals(rows.float())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum().exp()


@torch.no_grad()
def spread(rows: Tensor) -> Tensor:
    """Standard deviation over rows [N, d] of unit length, averaged over the columns, times sqrt(d).

    0 when all rows point the same way, 1 when they point anywhere (section 4.1 of https://arxiv.org/abs/2011.10566).
    """
    unit = F.normalize(rows.float(), dim=1)
    return unit.std(dim=0, unbiased=False).mean() * rows.shape[1] ** 0.5


def warning_of(measured: dict[str, float]) -> str | None:
    """What to say of `embedding_rank` and `embedding_spread`, None when there is nothing."""
    rank, found = measured["embedding_rank"], measured["embedding_spread"]
    if rank >= ONE_DIRECTION and found >= ONE_POINT:
        return None
    return (
        f"the student hardly tells images apart (effective rank {rank:.2f}, spread {found:.3f} of its embeddings), "
        "which is collapse unless it passes: lower optim.lr, raise moco.weight or add a term with negatives (seed)"
    )

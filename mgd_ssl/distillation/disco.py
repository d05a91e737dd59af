"""DisCo as a term: the student's embedding is drawn to the teacher's."""

import torch
from torch import Tensor, nn

from mgd_ssl.distillation.term import Needs, Seen


class DisCo(nn.Module):
    """Section 3.2 of https://arxiv.org/abs/2104.09124: squared distance of embeddings of unit length.

    The published code sums it over the images of a GPU, 32 of them; here it is their mean.

    Args:
        both_views: of query and key view, which the student then sees with gradient too; else of the query alone.
    """

    def __init__(self, both_views: bool = True) -> None:
        super().__init__()
        others = frozenset({"key"} if both_views else ())
        self.needs = Needs(teacher=others | {"query"}, student=others, head=True)

    @torch.no_grad()
    def prepare(self, teacher: Seen, step: int) -> list[Tensor]:
        """The teacher's embeddings [N, dim] of one view or two."""
        return self._embeddings(teacher)

    def loss(self, student: Seen, target: list[Tensor]) -> Tensor:
        """Distance of an image, summed over its views and averaged over the batch."""
        with torch.autocast(target[0].device.type, enabled=False):
            pairs = zip(self._embeddings(student), target, strict=True)
            return torch.stack([(s - t).square().sum(dim=1).mean() for s, t in pairs]).sum()

    def _embeddings(self, network: Seen) -> list[Tensor]:
        return [network.embedding(), *(network.views[name].embedding() for name in self.needs.student)]

    def after_step(self) -> None:
        """Nothing."""

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
        self.others = ("key",) if both_views else ()
        self.needs = Needs(teacher=frozenset({"query", *self.others}), student=frozenset(self.others), head=True)

    @torch.no_grad()
    def prepare(self, teacher: Seen, step: int) -> list[Tensor]:
        """The teacher's embeddings [N, dim] of one view or two."""
        return [teacher.embedding(), *self._of_others(teacher)]

    def loss(self, student: Seen, target: list[Tensor]) -> Tensor:
        """Distance of an image, summed over its views and averaged over the batch; that of the query is a mean over it
        and its local crops."""
        query, *others = target
        seen = [student.with_crops(Seen.embedding), *self._of_others(student)]
        with torch.autocast(query.device.type, enabled=False):
            pairs = zip(seen, [student.to_crops(query), *others], strict=True)
            return torch.stack([(s - t).square().sum(dim=1).mean() for s, t in pairs]).sum()

    def _of_others(self, network: Seen) -> list[Tensor]:
        return [network.views[name].embedding() for name in self.others]

    def after_step(self) -> None:
        """Nothing."""

"""BINGO as a term: images that the teacher holds for alike, a bag, are contrasted together."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.distillation.anchors import anchored
from mgd_ssl.distillation.queue import Queue
from mgd_ssl.distillation.term import Needs, Seen


class BingoTarget(NamedTuple):
    """What the teacher says of a batch."""

    anchor: Tensor  # p [N, dim]: of the anchors' key views, of unit length
    member: Tensor  # p2 [N, dim]: of the key views of an image of the same bag
    cross: float  # weight of the other image's embedding; that of the own one is 1 - cross
    share: float  # of the anchor in the mixed image


class Bingo(nn.Module):
    """Section 3 of https://arxiv.org/abs/2107.01691 and the published code: InfoNCE within a bag, and of mixed images.

    Args:
        dim: of both embeddings.
        queue_size: K embeddings of earlier anchors; a multiple of the global batch.
        temperature: of the softmax.
        warm_epochs: before them an image is compared with its own embedding alone, then with both of the bag.
        seed: of the queue's first content.
    """

    needs = Needs(teacher=frozenset({"key", "member_key"}), student=frozenset({"member", "mixed"}), head=True)

    def __init__(
        self, dim: int, queue_size: int, temperature: float = 0.2, warm_epochs: float = 11, seed: int = 0
    ) -> None:
        super().__init__()
        self.temperature, self.warm_epochs = temperature, warm_epochs
        self.queue = Queue(dim, queue_size, seed)
        self._newest: Tensor | None = None

    @torch.no_grad()
    def prepare(self, teacher: Seen, step: int) -> BingoTarget:
        """Embeddings of both images of the bag."""
        self._newest = p = teacher.views["key"].embedding()
        cross = 0.0 if teacher.epoch < self.warm_epochs else 0.5
        return BingoTarget(p, teacher.views["member_key"].embedding(), cross, teacher.share)

    def loss(self, student: Seen, target: BingoTarget) -> Tensor:
        """Mean of three parts: query, member, mixed image; each a mean over the batch."""
        p, p2, cross, share = target
        views = [student, student.views["member"], student.views["mixed"]]
        with torch.autocast(p.device.type, enabled=False):
            embeddings = torch.cat([view.embedding() for view in views]) / self.temperature
            negative = anchored(embeddings, self.queue.rows).total  # one way through the queue for all
            query, member, mixed = zip(embeddings.chunk(3), negative.chunk(3), strict=True)
            of_query = (1 - cross) * nce(query, p) + cross * nce(query, p2)
            of_member = (1 - cross) * nce(member, p2) + cross * nce(member, p)
            of_mixed = share * nce(mixed, p) + (1 - share) * nce(mixed, p2)
            return (of_query + of_member + of_mixed) / 3

    def after_step(self) -> None:
        """Enqueue the teacher's embeddings of the anchors."""
        assert self._newest is not None
        self.queue.put(self._newest)


def nce(compared: tuple[Tensor, Tensor], positive: Tensor) -> Tensor:
    """-log softmax at the positive, averaged over the batch.

    Args:
        compared: embeddings [N, dim] divided by the temperature, and where they stand among the negatives [N].
        positive: [N, dim].
    """
    embedding, negative = compared
    return F.softplus(negative - (embedding * positive).sum(dim=1)).mean()

"""CompRess with one queue as a term: the student stands to past images as the teacher does."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.distillation.anchors import anchored
from mgd_ssl.distillation.queue import Queue
from mgd_ssl.distillation.term import Needs, Seen, pooled


class CompRess(nn.Module):
    """Section 3.1 of https://arxiv.org/abs/2010.14713 (1q): KL of softened similarities to anchors.

    The anchors are features of the teacher for earlier images; a linear map brings the student's feature into its
    space, so any backbone can teach.

    Args:
        head: the map, [N, d] -> [N, D_t].
        teacher_width: D_t.
        queue_size: K anchors; a multiple of the global batch.
        temperature: of both networks.
        seed: of the queue's first content.
    """

    needs = Needs()

    def __init__(
        self, head: nn.Module, teacher_width: int, queue_size: int, temperature: float = 0.04, seed: int = 0
    ) -> None:
        super().__init__()
        self.head, self.temperature = head, temperature
        self.queue = Queue(teacher_width, queue_size, seed)
        self._newest: Tensor | None = None

    @torch.no_grad()
    def prepare(self, teacher: Seen, step: int) -> Tensor:
        """The teacher's feature t [N, D_t], of unit length."""
        assert teacher.feature is not None
        with torch.autocast(teacher.feature.device.type, enabled=False):
            self._newest = F.normalize(teacher.feature.float(), dim=1)
        return self._newest

    def loss(self, student: Seen, target: Tensor) -> Tensor:
        """Divergence of an image, averaged over the batch and over what the student sees of an image.

        Similarities are linear in the feature, so the teacher's expectation of them is the similarity to its mean
        anchor.
        """
        mapped, of = self.head(student.with_crops(pooled)), student.to_crops
        with torch.autocast(target.device.type, enabled=False):
            scaled = torch.cat([F.normalize(mapped.float(), dim=1), target]) / self.temperature
            total, mean, _ = anchored(scaled, self.queue.rows)
            theirs = mean[len(mapped) :]  # mean anchors of the teacher, [N, D_t]
            expected = (scaled * torch.cat([of(theirs), theirs])).sum(dim=1)
            cross_entropy, entropy = (total - expected).tensor_split([len(mapped)])
            return (cross_entropy - of(entropy)).mean()

    def after_step(self) -> None:
        """Enqueue the teacher's features."""
        assert self._newest is not None
        self.queue.put(self._newest)

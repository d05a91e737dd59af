"""SEED as a term: the student's similarities to past embeddings of the teacher become the teacher's own."""

import torch
from torch import Tensor, nn

from mgd_ssl.distillation.anchors import anchored
from mgd_ssl.distillation.queue import Queue
from mgd_ssl.distillation.term import Needs, Seen


class Seed(nn.Module):
    """Section 3.2 of https://arxiv.org/abs/2101.04731: cross entropy of two softened sets of similarities.

    Args:
        dim: of both embeddings.
        queue_size: K embeddings of earlier images; a multiple of the global batch.
        student_temperature: T_s.
        teacher_temperature: T_t; at 1e-4, as in the published code, the target is the image itself.
        seed: of the queue's first content.
    """

    needs = Needs(head=True)

    def __init__(
        self,
        dim: int,
        queue_size: int,
        student_temperature: float = 0.2,
        teacher_temperature: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.queue = Queue(dim, queue_size, seed)
        self._newest: Tensor | None = None

    @torch.no_grad()
    def prepare(self, teacher: Seen, step: int) -> Tensor:
        """The teacher's embeddings t [N, dim], of unit length."""
        self._newest = teacher.embedding()
        return self._newest

    def loss(self, student: Seen, target: Tensor) -> Tensor:
        """Cross entropy of an image, averaged over the batch and over what the student sees of an image.

        Each softmax is over the image's own teacher embedding and the queue. Similarities are linear in the student's
        embedding, so the teacher's expectation of them is the similarity to its mean anchor.
        """
        s, t = student.with_crops(Seen.embedding), target
        of = student.to_crops
        with torch.autocast(t.device.type, enabled=False):
            scaled = torch.cat([s / self.student_temperature, t / self.teacher_temperature])
            total, mean, _ = anchored(scaled, self.queue.rows)
            ours, theirs = total.tensor_split([len(s)])
            own, teachers_own = (scaled * torch.cat([of(t), t])).sum(dim=1).tensor_split([len(s)])
            share = of((teachers_own - theirs).sigmoid())  # of the own embedding in the teacher's softmax
            expected = share * own + (1 - share) * (scaled[: len(s)] * of(mean[len(s) :])).sum(dim=1)
            return (torch.logaddexp(own, ours) - expected).mean()

    def after_step(self) -> None:
        """Enqueue the teacher's embeddings."""
        assert self._newest is not None
        self.queue.put(self._newest)

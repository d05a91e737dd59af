"""SEED as a term: the student's similarities to past embeddings of the teacher become the teacher's own."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.distillation.queue import Queue
from mgd_ssl.distillation.term import Needs, Seen


class SeedTarget(NamedTuple):
    """What the teacher says of a batch."""

    embedding: Tensor  # t [N, dim], of unit length
    shares: Tensor  # [N, 1 + K] of the image's own embedding and of those in the queue


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
    def prepare(self, teacher: Seen, step: int) -> SeedTarget:
        """Softmax over the own embedding and the queue."""
        t = self._newest = teacher.embedding()  # [N, dim]
        with torch.autocast(t.device.type, enabled=False):
            return SeedTarget(t, self._similarities(t, t).div_(self.teacher_temperature).softmax(dim=1))

    def loss(self, student: Seen, target: SeedTarget) -> Tensor:
        """Cross entropy of an image, averaged over the batch."""
        s = student.embedding()
        with torch.autocast(s.device.type, enabled=False):
            return F.cross_entropy(self._similarities(s, target.embedding) / self.student_temperature, target.shares)

    def _similarities(self, embedding: Tensor, own: Tensor) -> Tensor:
        """Cosines [N, 1 + K] with the image's own teacher embedding, then with the queue."""
        return torch.cat([(embedding * own).sum(dim=1, keepdim=True), embedding @ self.queue.rows.T], dim=1)

    def after_step(self) -> None:
        """Enqueue the teacher's embeddings."""
        assert self._newest is not None
        self.queue.put(self._newest)

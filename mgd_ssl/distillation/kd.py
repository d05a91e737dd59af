"""Knowledge distillation as a term: the student's logits are drawn towards the teacher's softened ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.distillation.term import Needs, Seen


class LogitDistillation(nn.Module):
    """https://arxiv.org/abs/1503.02531: KL(teacher || student) at a temperature T, times T^2.

    The factor keeps the gradient's size where T changes.

    Args:
        temperature: T, by which both networks' logits are divided.
    """

    needs = Needs()

    def __init__(self, temperature: float = 1.5) -> None:
        super().__init__()
        self.temperature = temperature

    def prepare(self, teacher: Seen, step: int) -> Tensor:
        """The teacher's logits [N, classes]."""
        assert teacher.output is not None
        return teacher.output

    def loss(self, student: Seen, target: Tensor) -> Tensor:
        """Divergence of an image, averaged over the batch."""
        assert student.output is not None
        with torch.autocast(target.device.type, enabled=False):
            ours = F.log_softmax(student.output.float() / self.temperature, dim=1)
            theirs = F.log_softmax(target.float() / self.temperature, dim=1)
            return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2

    def after_step(self) -> None:
        """Nothing."""

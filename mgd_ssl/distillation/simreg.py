"""SimReg as a term: a head on the student's feature predicts the teacher's feature, and is thrown away."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.distillation.term import Needs, Seen, pooled


def regression_head(width: int, teacher_width: int, layers: int = 4) -> nn.Sequential:
    """The published heads, with keys as in the published code.

    Args:
        width: d of the student's feature.
        teacher_width: D_t of the teacher's.
        layers: 4 with widths 2d, d, 2d, D_t and BatchNorm and ReLU after the first and third; 2 and 1 are linear.
    """
    widths = {1: [width], 2: [width, 2 * width], 4: [width, 2 * width, width, 2 * width]}[layers] + [teacher_width]
    modules: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths)):
        modules.append(nn.Linear(before, after))
        if layers == 4 and number in (0, 2):
            modules += [nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*modules)


class SimReg(nn.Module):
    """Section 3 of https://arxiv.org/abs/2201.05131: 2 - 2 cos of prediction and feature; any backbone can teach.

    Args:
        head: maps the student's feature [N, d] to the teacher's width (see `regression_head`).
    """

    needs = Needs()

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    @torch.no_grad()
    def prepare(self, teacher: Seen, step: int) -> Tensor:
        """The teacher's feature [N, D_t], of unit length."""
        assert teacher.feature is not None
        return F.normalize(teacher.feature.float(), dim=1)

    def loss(self, student: Seen, target: Tensor) -> Tensor:
        """Squared distance on the sphere, averaged over the batch and over what the student sees of an image."""
        predicted = self.head(student.with_crops(pooled))
        with torch.autocast(target.device.type, enabled=False):
            cosine = (F.normalize(predicted.float(), dim=1) * student.to_crops(target)).sum(dim=1)
            return (2 - 2 * cosine).mean()

    def after_step(self) -> None:
        """Nothing."""

"""A detector's losses, and a guide that draws its backbone towards a teacher."""

from typing import Any

import torch
from torch import Tensor, nn

from mgd_ssl.distillation.guide import Guide
from mgd_ssl.tasks.detection.detector import Boxes, Detector
from mgd_ssl.training.task import StepOutput


class GuidedDetector(nn.Module):
    """A detector that is also guided by a teacher; plain training where the guide has no terms.

    Args:
        student: is trained.
        guide: watches the student's backbone.
    """

    def __init__(self, student: Detector, guide: Guide) -> None:
        super().__init__()
        self.student, self.guide = student, guide

    def forward(self, images: Tensor, sizes: Tensor, boxes: list[Boxes], targets: dict[str, Any]) -> StepOutput:
        """Losses of one batch.

        Args:
            images: [N, 3, H, W] normalised and padded.
            sizes: [N, 2] height and width of each.
            boxes: `boxes` [m, 4] and `labels` [m] of each.
            targets: `guide.prepare` of what the teacher saw of the images; empty without a teacher.
        """
        with self.guide.watch() as seen:
            losses = self.student.losses(images, sizes, boxes)
        return StepOutput({**losses, **self.guide.losses(seen, targets)}, {})

    @torch.no_grad()
    def student_maps(self, images: Tensor) -> list[Tensor]:
        """Pre-ReLU maps [N, C_s, H, W] of every tapped stage, in the student's current mode."""
        with self.guide.watch() as seen:
            self.student.body(images)
        return seen.maps

"""Classification: a network's cross entropy, and a guide that draws it towards a teacher."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.distillation.guide import Guide
from mgd_ssl.training.task import StepOutput


class GuidedClassifier(nn.Module):
    """A classifier that is also guided by a teacher; plain supervised training where the guide has no terms.

    Args:
        student: images [N, 3, H, W] -> logits [N, classes].
        guide: watches the student.
        label_smoothing: share of a label that is spread over all classes.
    """

    def __init__(self, student: nn.Module, guide: Guide, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.student, self.guide, self.label_smoothing = student, guide, label_smoothing

    def forward(self, images: Tensor, labels: Tensor, targets: dict[str, Any]) -> StepOutput:
        """Losses of one batch.

        Args:
            images: [N, 3, H, W].
            labels: [N] class indexes.
            targets: `guide.prepare` of what the teacher saw of the images; empty without a teacher.

        Returns:
            Cross entropy and the losses of the guide's terms; the share of images classified rightly.
        """
        with self.guide.watch() as seen:
            seen.output = self.student(images)
        cross_entropy = F.cross_entropy(seen.output, labels, label_smoothing=self.label_smoothing)
        accuracy = (seen.output.detach().argmax(dim=1) == labels).float().mean()
        losses = {"cross_entropy": cross_entropy, **self.guide.losses(seen, targets)}
        return StepOutput(losses, {"accuracy": accuracy})

    @torch.no_grad()
    def student_maps(self, images: Tensor) -> list[Tensor]:
        """Pre-ReLU maps [N, C_s, H, W] of every tapped stage, in the student's current mode."""
        with self.guide.watch() as seen:
            self.student(images)
        return seen.maps

"""Classification: a network's cross entropy, and a guide that draws it towards a teacher."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.distillation.guide import Guide
from mgd_ssl.training.task import StepOutput


class Mixing(NamedTuple):
    """mixup (https://arxiv.org/abs/1710.09412): image i became `share` * i + (1 - share) * `order[i]`."""

    share: Tensor  # scalar
    order: Tensor  # [N] int64, a permutation

    @classmethod
    def draw(cls, alpha: float, num_images: int, seed: int) -> "Mixing":
        """One for a batch, a function of the seed alone: share from Beta(alpha, alpha)."""
        generator = np.random.default_rng(seed)
        share = torch.tensor(generator.beta(alpha, alpha), dtype=torch.float32)
        return cls(share, torch.from_numpy(generator.permutation(num_images)))

    def to(self, device: torch.device) -> "Mixing":
        """The same on a device."""
        return Mixing(self.share.to(device), self.order.to(device))

    def mixed(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> the same shape."""
        return torch.lerp(images[self.order], images, self.share)


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

    def forward(
        self, images: Tensor, labels: Tensor, targets: dict[str, Any], mixing: Mixing | None = None
    ) -> StepOutput:
        """Losses of one batch.

        Args:
            images: [N, 3, H, W].
            labels: [N] class indexes.
            targets: `guide.prepare` of what the teacher saw of the images; empty without a teacher.
            mixing: how the images were mixed, if they were.

        Returns:
            Cross entropy and the losses of the guide's terms; the share of images classified rightly. Of mixed images
            both are those of the two labels in the images' shares.
        """
        with self.guide.watch() as seen:
            seen.output = self.student(images)
        cross_entropy, accuracy = self._against(seen.output, labels)
        if mixing is not None:
            other_entropy, other_accuracy = self._against(seen.output, labels[mixing.order])
            cross_entropy = torch.lerp(other_entropy, cross_entropy, mixing.share.to(cross_entropy.dtype))
            accuracy = torch.lerp(other_accuracy, accuracy, mixing.share)
        losses = {"cross_entropy": cross_entropy, **self.guide.losses(seen, targets)}
        return StepOutput(losses, {"accuracy": accuracy})

    def _against(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        cross_entropy = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return cross_entropy, (logits.detach().argmax(dim=1) == labels).float().mean()

    @torch.no_grad()
    def student_maps(self, images: Tensor) -> list[Tensor]:
        """Pre-ReLU maps [N, C_s, H, W] of every tapped stage, in the student's current mode."""
        with self.guide.watch() as seen:
            self.student(images)
        return seen.maps

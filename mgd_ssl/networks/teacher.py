"""The teacher: a frozen encoder, loaded and checked before anything depends on it."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.resnet import ResNet

from mgd_ssl.mgd.margin import relu_margin
from mgd_ssl.networks.backbones import stage_taps
from mgd_ssl.networks.folding import fold_batch_norms
from mgd_ssl.networks.frozen import Frozen
from mgd_ssl.networks.taps import FeatureTaps
from mgd_ssl.networks.weights import LoadReport, load_backbone


class Teacher(Frozen):
    """A frozen backbone that yields the maps of its stages.

    It is an input of a run: not wrapped in DDP, not in the checkpoint (its path and hash are).

    Args:
        backbone: trained network; its `fc` is not used.
        report: how it was loaded.
    """

    def __init__(self, backbone: ResNet, report: LoadReport | None = None) -> None:
        super().__init__(backbone, report)
        self.stages = stage_taps(backbone)
        self.channels = [stage.channels for stage in self.stages]  # C_t a stage
        self.taps = FeatureTaps(backbone, [stage.relu for stage in self.stages])
        self._margins: list[Tensor] | None = None  # read before `fold`

    @classmethod
    def load(cls, path: Path, arch: str | None = None) -> "Teacher":
        """Load strictly (see `load_backbone`)."""
        return cls(*load_backbone(path, arch))

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Pre-ReLU maps [N, C_t, H, W] of every stage for images [N, 3, H, W]."""
        with self.taps.record() as maps:
            self.backbone(images)
        return maps

    def margins(self) -> list[Tensor]:
        """Margin-ReLU margins [C_t] of every stage, from the BatchNorm before each tap."""
        if self._margins is not None:
            return self._margins
        norms = [self.backbone.get_submodule(stage.norm) for stage in self.stages]
        return [relu_margin(norm.weight.detach(), norm.bias.detach()) for norm in norms]  # type: ignore[operator]

    def fold(self) -> None:
        """Fold BatchNorms into the convolutions before them: the same maps, up to rounding, in fewer passes."""
        self._margins = self.margins()
        fold_batch_norms(self.backbone, self)

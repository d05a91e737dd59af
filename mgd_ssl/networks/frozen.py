"""Networks that are only looked at: always in eval mode, without gradient; those evaluated are proven untouched."""

import hashlib
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from mgd_ssl.errors import TrainingError
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.untrained import load_evaluated


class Frozen(nn.Module):
    """A backbone without gradient and without updates of its BatchNorms.

    Args:
        backbone: trained network.
        report: how it was loaded.
    """

    def __init__(self, backbone: nn.Module, report: LoadReport | None = None) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.report = report
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever is asked."""
        return super().train(False)


class FrozenBackbone(Frozen):
    """The backbone that is evaluated.

    Args:
        backbone: trained network with its `fc` removed.
        report: how it was loaded.
    """

    report: LoadReport

    def __init__(self, backbone: nn.Module, report: LoadReport) -> None:
        super().__init__(backbone, report)
        self._hashes = hashes(backbone)

    @classmethod
    def load(cls, path: Path, arch: str | None = None) -> "FrozenBackbone":
        """Load strictly (see `load_backbone`), or make an untrained one (see `load_evaluated`)."""
        return cls(*load_evaluated(path, arch))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> pooled features [N, d]."""
        features: Tensor = self.backbone(images)
        return features

    def check_untouched(self) -> None:
        """Hold every parameter and buffer against its hash from when it was loaded.

        Raises:
            TrainingError: naming the first that has changed.
        """
        now = hashes(self.backbone)
        changed = [name for name in self._hashes | now if self._hashes.get(name) != now.get(name)]
        if changed:
            raise TrainingError(
                f"the backbone from {self.report.path} was changed while it was evaluated ({len(changed)} tensors, "
                f"first {changed[0]}), so the result is void: load it anew, and report this as a bug"
            )


def hashes(module: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and buffer."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        for name, value in tensors.items()
    }

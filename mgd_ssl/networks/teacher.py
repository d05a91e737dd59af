"""The teacher: a frozen encoder, loaded and checked before anything depends on it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mgd_ssl.errors import UserError
from mgd_ssl.mgd.margin import relu_margin
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import stage_taps
from mgd_ssl.networks.folding import fold_batch_norms
from mgd_ssl.networks.frozen import Frozen
from mgd_ssl.networks.normalisation import Normalisation
from mgd_ssl.networks.stages import StageTap
from mgd_ssl.networks.taps import FeatureTaps, map_sizes
from mgd_ssl.networks.vit import TokenMaps
from mgd_ssl.networks.weights import Asked, load_trained


class Teacher(Frozen):
    """A frozen backbone that yields the maps of its stages.

    It is an input of a run: not wrapped in DDP, not in the checkpoint (its path and hash are).

    Args:
        backbone: trained network, with or without its classifier.
        report: how it was loaded.
        stages: where it is read; None: before the last ReLU of every stage, if it has such maps.
        head: its projection head, pooled features [N, d] -> embeddings [N, dim], not normalised.
    """

    def __init__(
        self,
        backbone: nn.Module,
        report: LoadReport | None = None,
        stages: Sequence[StageTap] | None = None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, report)
        self.head = None if head is None else head.eval().requires_grad_(False)
        self.read(_usual(backbone) if stages is None else stages)
        self._margins: list[Tensor] | None = None  # read before `fold`

    @classmethod
    def load(
        cls,
        path: Path,
        arch: str | None = None,
        with_classifier: bool = False,
        with_head: bool = False,
        normalisation: Normalisation | None = None,
    ) -> "Teacher":
        """Load strictly; see `load_trained` and `Asked`. Without `with_head` its `head` is None."""
        backbone, report, head = load_trained(
            path, Asked(arch, with_classifier, "needed" if with_head else "none", normalisation)
        )
        return cls(backbone, report, head=head)

    def read(self, stages: Sequence[StageTap]) -> None:
        """Yield the maps of these stages from now on."""
        self.stages = list(stages)
        self.channels = [stage.channels for stage in self.stages]  # C_t a stage
        self.taps = FeatureTaps(self.backbone, [stage.relu for stage in self.stages])

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Pre-ReLU maps [N, C_t, H, W] of every stage for images [N, 3, H, W]."""
        return self.watched(images)[0]

    @torch.no_grad()
    def watched(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """The maps of `forward`, and what the backbone returns: logits, or features where it has no classifier."""
        with self.taps.record() as maps:
            output = self.backbone(images)
        return maps, output

    @torch.no_grad()
    def seen(self, images: Tensor) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """Maps of every stage, embedding [N, dim] where it has a head, and pooled feature [N, d] of images."""
        maps, feature = self.watched(images)
        return maps, None if self.head is None else self.head(feature), feature

    def margins(self) -> list[Tensor]:
        """Margin-ReLU margins [C_t] of every stage, from the BatchNorm before each tap.

        Raises:
            UserError: where there is none.
        """
        if self._margins is not None:
            return self._margins
        if unnormed := [stage.relu for stage in self.stages if not stage.norm]:
            raise UserError(
                f"no BatchNorm's output alone enters the teacher's {unnormed[0]}, so its margins are not known: set "
                "mgd.margin to 'measured'"
            )
        norms = [self.backbone.get_submodule(stage.norm) for stage in self.stages]
        return [relu_margin(norm.weight.detach(), norm.bias.detach()) for norm in norms]  # type: ignore[operator]

    def fold(self) -> None:
        """Fold BatchNorms into the convolutions before them: the same maps, up to rounding, in fewer passes."""
        if all(stage.norm for stage in self.stages):
            self._margins = self.margins()
        fold_batch_norms(self.backbone, self)


def _usual(backbone: nn.Module) -> list[StageTap]:
    """Where it is usually read; nowhere, where it has no such maps: its logits may be all that is wanted."""
    try:
        return stage_taps(backbone)
    except UserError:
        return []


def let_meet(teacher: Teacher, student: nn.Module, taps: Sequence[StageTap], image_size: int) -> None:
    """Give a ViT maps as large as those of a student's taps; other teachers have the maps they have.

    Raises:
        UserError: when its grid is far from every stage's map.
    """
    if isinstance(teacher.backbone, TokenMaps):
        edges = map_sizes(student, [tap.relu for tap in taps], image_size)
        teacher.backbone.meet({tap.stage: edge[0] for tap, edge in zip(taps, edges, strict=True)}, image_size)
        teacher.read(stage_taps(teacher.backbone))

"""DistilledMoCo: the only file that sees both MoCo and MGD."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.mgd.mgd import MGD, Target
from mgd_ssl.networks.taps import FeatureTaps
from moco import MoCo

ROUNDING = 2e-6  # of a cosine of two vectors, summed in float32 in whatever order


class Losses(NamedTuple):
    """Terms of one step."""

    total: Tensor  # scalar: contrastive + weight * distillation
    contrastive: Tensor  # scalar InfoNCE
    distillation: Tensor  # scalar, before the weight; 0 without a teacher
    accuracy: Tensor  # scalar: share of queries whose own key is strictly nearer than the whole queue
    keys: Tensor  # [N, dim], to be enqueued after the backward pass


class DistilledMoCo(nn.Module):
    """MoCo whose query encoder is also pulled towards a teacher's maps; plain MoCo without an MGD.

    Args:
        moco: its `encoder_q` is tapped, its `encoder_k` never.
        mgd: the distillation loss, or None.
        taps: module names of the query encoder's ReLUs, one for each stage of `mgd`.
        weight: factor of the distillation loss (published: 1e-4).
    """

    def __init__(self, moco: MoCo, mgd: MGD | None = None, taps: Sequence[str] = (), weight: float = 1e-4) -> None:
        super().__init__()
        self.moco = moco
        self.mgd = mgd
        self.taps = FeatureTaps(moco.encoder_q, taps if mgd is not None else ())
        self.weight = weight

    def forward(
        self, im_q: Tensor, im_k: Tensor, targets: Sequence[Target] | None = None, shuffle_seed: int = 0
    ) -> Losses:
        """Losses of one batch.

        Args:
            im_q: [N, 3, H, W] query views.
            im_k: [N, 3, H, W] key views.
            targets: `mgd.reduce` of the teacher's maps of `im_q`; None exactly when there is no MGD.
            shuffle_seed: see `MoCo.forward`.
        """
        if (self.mgd is None) != (targets is None):
            raise ValueError("pass targets exactly when the method has an MGD")

        # contrastive loss; the taps read the query encoder's maps on the way
        with self.taps.record() as student_maps:
            logits, labels, keys = self.moco(im_q, im_k, shuffle_seed)  # [N, 1 + K]
        contrastive = F.cross_entropy(logits, labels)
        accuracy = self.nearer(logits).float().mean()

        # distillation loss
        if self.mgd is None or targets is None:
            distillation = torch.zeros_like(contrastive)
        else:
            distillation = self.mgd.loss(student_maps, targets)
        total = contrastive + self.weight * distillation
        return Losses(total, contrastive.detach(), distillation.detach(), accuracy, keys)

    @torch.no_grad()
    def nearer(self, logits: Tensor) -> Tensor:
        """Whether each query [N] is strictly nearer to its own key, entry 0 of [N, 1 + K], than to the whole queue.

        By more than rounding: the two are computed by different kernels, so where all keys are the same (a collapsed
        encoder) one comes out above the other by chance.
        """
        rounding = (ROUNDING + torch.finfo(logits.dtype).eps) / self.moco.temperature
        return logits[:, 0] - logits[:, 1:].amax(dim=1) > rounding

    @torch.no_grad()
    def student_maps(self, images: Tensor) -> list[Tensor]:
        """Pre-ReLU maps [N, C_s, H, W] of every stage of the query encoder, in its current mode."""
        with self.taps.record() as maps:
            self.moco.encoder_q(images)
        return maps

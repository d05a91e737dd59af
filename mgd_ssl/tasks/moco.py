"""Pretraining: MoCo, and a guide that draws its query encoder towards a teacher."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.config import PretrainConfig
from mgd_ssl.distillation.guide import Guide
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.distillation.pairs import Named, pair
from mgd_ssl.errors import UserError
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.backbones import initial_encoder
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.training.task import StepOutput
from moco import MoCo
from moco.dist import world_size
from moco.keyed import keyed_seed
from moco.split_norm import split_batch_norms

ROUNDING = 2e-6  # of a cosine of two vectors, summed in float32 in whatever order


class GuidedMoCo(nn.Module):
    """MoCo whose query encoder is also guided by a teacher; plain MoCo where the guide has no terms.

    Args:
        moco: knows nothing of the guide.
        guide: watches `moco.encoder_q`.
    """

    def __init__(self, moco: MoCo, guide: Guide) -> None:
        super().__init__()
        self.moco, self.guide = moco, guide

    def forward(self, im_q: Tensor, im_k: Tensor, targets: dict[str, Any], shuffle_seed: int = 0) -> StepOutput:
        """Losses of one batch.

        Args:
            im_q: [N, 3, H, W] query views.
            im_k: [N, 3, H, W] key views.
            targets: `guide.prepare` of what the teacher saw of the query views; empty without a teacher.
            shuffle_seed: see `MoCo.forward`.

        Returns:
            The contrastive loss and those of the guide's terms; the share of queries whose own key is strictly
            nearer than the whole queue; the keys, to be enqueued after the backward pass.
        """
        # contrastive loss; the guide watches the query encoder on the way
        with self.guide.watch() as seen:
            logits, labels, keys = self.moco(im_q, im_k, shuffle_seed)  # [N, 1 + K]
        contrastive = F.cross_entropy(logits, labels)
        accuracy = self.nearer(logits).float().mean()

        # losses of the guide
        losses = {"contrastive": contrastive, **self.guide.losses(seen, targets)}
        return StepOutput(losses, {"accuracy": accuracy}, keys)

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
        with self.guide.watch() as seen:
            self.moco.encoder_q(images)
        return seen.maps


def build_method(config: PretrainConfig, teacher: Teacher | None) -> GuidedMoCo:
    """The student with its losses, freshly initialised from the run's seed, on the CPU.

    Raises:
        UserError: when the architectures do not fit each other or the image size.
    """
    moco_config, mgd_config = config.moco, config.mgd
    encoder = initial_encoder(config.student, moco_config.dim, moco_config.head_width, config.seed)
    moco = MoCo(
        encoder,
        moco_config.dim,
        moco_config.queue_size,
        moco_config.momentum,
        moco_config.temperature,
        seed=keyed_seed(config.seed, "queue"),
        bn_splits=moco_config.bn_splits,
    )
    if teacher is None:
        return GuidedMoCo(moco, Guide(encoder))
    taps = pair(encoder, teacher, Named(config.taps, config.teacher_taps), config.data.image_size)
    try:
        mgd = MGD(
            [tap.channels for tap in taps],
            teacher.channels,
            teacher.margins() if mgd_config.margin == "teacher" else None,
            mgd_config.reducer,
            [mgd_config.stage_weights[tap.stage - 1] for tap in taps],
        )
    except ValueError as error:
        raise UserError(f"{config.student} cannot learn from {config.teacher}: {error}") from error
    if moco_config.bn_splits > 1:
        split_batch_norms(mgd.norms, moco_config.bn_splits)
    terms, weights = {"mgd": MatchedMaps(mgd, config.seed)}, {"mgd": mgd_config.weight}
    return GuidedMoCo(moco, Guide(encoder, [tap.relu for tap in taps], terms, weights))


def check_sizes(config: PretrainConfig, num_images: int) -> None:
    """Raise UserError unless batch, queue, processes and data fit one another."""
    batch, queue, processes = config.optim.batch_size, config.moco.queue_size, world_size()
    if num_images < batch:
        raise UserError(
            f"{config.data.train} holds {num_images} images, fewer than optim.batch_size {batch}: "
            "add images or lower the batch size"
        )
    if queue % batch:
        raise UserError(
            f"moco.queue_size {queue} is not a multiple of optim.batch_size {batch}: "
            f"set it to {max(1, round(queue / batch)) * batch}, say"
        )
    if batch % processes or batch // processes < 2:
        raise UserError(
            f"optim.batch_size {batch} does not give each of {processes} processes the same number of at least "
            "2 images: change either"
        )
    local, splits = batch // processes, config.moco.bn_splits
    if local % splits or local // splits < 2:
        raise UserError(
            f"the {local} images of a process and step cannot be split into moco.bn_splits {splits} equal parts of at "
            "least 2 images: change that or optim.batch_size"
        )

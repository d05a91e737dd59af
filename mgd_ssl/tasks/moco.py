"""DistilledMoCo: the only file that sees both MoCo and MGD."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.config import PretrainConfig
from mgd_ssl.errors import UserError
from mgd_ssl.mgd.mgd import MGD, Target
from mgd_ssl.networks.backbones import initial_encoder, stage_taps
from mgd_ssl.networks.taps import FeatureTaps
from mgd_ssl.networks.teacher import Teacher
from moco import MoCo
from moco.dist import world_size
from moco.keyed import keyed_seed
from moco.split_norm import split_batch_norms

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


def build_method(config: PretrainConfig, teacher: Teacher | None) -> DistilledMoCo:
    """The student with its losses, freshly initialised from the run's seed, on the CPU.

    Raises:
        UserError: when the architectures do not fit each other or the image size.
    """
    moco_config, mgd_config = config.moco, config.mgd
    encoder = initial_encoder(config.student, moco_config.dim, moco_config.head_width, config.seed)
    taps = stage_taps(encoder)
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
        return DistilledMoCo(moco)
    try:
        mgd = MGD(
            [tap.channels for tap in taps],
            teacher.channels,
            teacher.margins() if mgd_config.margin == "teacher" else None,
            mgd_config.reducer,
            mgd_config.stage_weights,
        )
    except ValueError as error:
        raise UserError(f"{config.student} cannot learn from {config.teacher}: {error}") from error
    if moco_config.bn_splits > 1:
        split_batch_norms(mgd.norms, moco_config.bn_splits)
    method = DistilledMoCo(moco, mgd, [tap.relu for tap in taps], mgd_config.weight)
    check_maps(method, teacher, config)
    return method


def check_maps(method: DistilledMoCo, teacher: Teacher, config: PretrainConfig) -> None:
    """Raise UserError unless student and teacher maps have one spatial size at every stage, above 1 x 1."""
    size = config.data.image_size
    probe = torch.zeros(1, 3, size, size)
    method.eval()
    sizes = zip(method.student_maps(probe), teacher(probe), strict=True)
    for i, (student_map, teacher_map) in enumerate(sizes, start=1):
        s, t = list(student_map.shape[2:]), list(teacher_map.shape[2:])
        if s != t:
            raise UserError(
                f"stage {i} of {config.student} has maps of {s} and of the teacher {t} at data.image_size {size}: "
                "choose networks whose strides agree"
            )
        if s == [1, 1]:
            raise UserError(
                f"the maps of stage {i} are 1 x 1 at data.image_size {size}, which leaves nothing to match: "
                "choose larger images"
            )


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

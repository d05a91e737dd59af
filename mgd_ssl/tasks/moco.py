"""Pretraining: MoCo, and a guide that draws its query encoder towards a teacher."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.config import PretrainConfig
from mgd_ssl.distillation.guide import Guide
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.distillation.pairs import Named, pair
from mgd_ssl.distillation.term import Seen
from mgd_ssl.errors import UserError
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.backbones import build_backbone, family_of, feature_width, initial_encoder, stage_taps
from mgd_ssl.networks.teacher import Teacher, let_meet
from mgd_ssl.tasks.terms import build_terms, chosen, weight_of
from mgd_ssl.training.collapse import effective_rank, spread
from mgd_ssl.training.task import StepOutput
from moco import MoCo
from moco.dist import gather_batch, world_size
from moco.keyed import keyed_seed
from moco.split_norm import split_batch_norms

ROUNDING = 2e-6  # of a cosine of two vectors, summed in float32 in whatever order


class QueryEncoder(nn.Module):
    """What is left of MoCo at weight 0: the query encoder, with neither key encoder nor queue.

    Args:
        encoder: maps [N, 3, H, W] to [N, dim].
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder_q = encoder


class GuidedMoCo(nn.Module):
    """MoCo whose query encoder is also guided by a teacher; plain MoCo where the guide has no terms.

    Args:
        moco: knows nothing of the guide; a `QueryEncoder` where there is no contrastive loss.
        guide: watches `moco.encoder_q`.
        weight: factor of the contrastive loss.

    While `measuring` is true, `measured` is filled with scalars: how evenly embeddings and features of the whole batch
    spread, and, where `gradients` is true too, the norm of every loss's gradient.
    """

    def __init__(self, moco: MoCo | QueryEncoder, guide: Guide, weight: float = 1.0) -> None:
        super().__init__()
        self.moco, self.guide, self.weight = cast(MoCo, moco), guide, weight
        self.contrasts = isinstance(moco, MoCo)
        self.measuring, self.gradients = False, True
        self.measured: dict[str, Tensor] = {}

    def forward(
        self,
        im_q: Tensor,
        im_k: Tensor | None,
        targets: dict[str, Any],
        shuffle_seed: int = 0,
        others: Mapping[str, Tensor] | None = None,
    ) -> StepOutput:
        """Losses of one batch.

        Args:
            im_q: [N, 3, H, W] query views.
            im_k: [N, 3, H, W] key views; None where nothing is contrasted.
            targets: `guide.prepare` of what the teacher saw; empty without a teacher.
            shuffle_seed: see `MoCo.forward`.
            others: [N, 3, H, W] views that the query encoder sees too, with gradient, by name.

        Returns:
            The contrastive loss and those of the guide's terms; the share of queries whose own key is strictly
            nearer than the whole queue; the keys, to be enqueued after the backward pass.
        """
        losses: dict[str, Tensor] = {}
        shown: dict[str, Tensor] = {}
        keys = None
        # contrastive loss; the guide watches the query encoder on the way
        with self.guide.watch() as seen:
            if self.contrasts:
                logits, labels, keys = self.moco(im_q, im_k, shuffle_seed)  # [N, 1 + K]
            else:
                self.moco.encoder_q(im_q)
        if self.contrasts:
            losses["contrastive"] = self.weight * F.cross_entropy(logits, labels)
            shown["accuracy"] = self.nearer(logits).float().mean()

        # losses of the guide
        for name, images in (others or {}).items():
            with self.guide.watch() as seen.views[name]:
                self.moco.encoder_q(images)
        losses |= self.guide.losses(seen, targets)
        if self.measuring:
            losses = self._measure(losses, seen)
        return StepOutput(losses, shown, keys)

    def _measure(self, losses: dict[str, Tensor], seen: Seen) -> dict[str, Tensor]:
        """Fill `measured`; the losses come back with the balance that was found."""
        for name, rows in (("embedding", seen.output), ("feature", seen.feature)):
            if rows is not None:
                whole = gather_batch(rows.detach().float())
                self.measured |= {f"{name}_rank": effective_rank(whole), f"{name}_spread": spread(whole)}
        if self.gradients:
            losses, norms = self.guide.balance(losses, seen, "contrastive")
            self.measured |= {f"gradient_{name}": norm for name, norm in norms.items()}
        return losses

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


def build_method(config: PretrainConfig, teacher: Teacher | None, encoder: nn.Module | None = None) -> GuidedMoCo:
    """The student with its losses, on the CPU.

    Args:
        config: of the run.
        teacher: frozen, not yet folded.
        encoder: the student with its projection head; None: freshly initialised from the run's seed.

    Raises:
        UserError: when the architectures do not fit each other or the image size.
    """
    moco_config = config.moco
    if encoder is None:
        encoder = initial_encoder(config.student, moco_config.dim, moco_config.head_width, config.seed)
    moco: MoCo | QueryEncoder
    if moco_config.weight > 0:
        moco = MoCo(
            encoder, moco_config.dim, moco_config.queue_size, moco_config.momentum, moco_config.temperature,
            seed=keyed_seed(config.seed, "queue"), bn_splits=moco_config.bn_splits,
        )  # fmt: skip
    else:
        moco = QueryEncoder(encoder)
        if moco_config.bn_splits > 1:
            split_batch_norms(encoder, moco_config.bn_splits)
    if config.data.local_crops:
        check_local_size(encoder, config)
    head = family_of(encoder).classifier
    if teacher is None:
        return GuidedMoCo(moco, Guide(encoder, head=head), moco_config.weight)
    taps: list[str] = []
    terms: dict[str, nn.Module] = {}
    if config.mgd.weight > 0:
        taps, terms["mgd"] = matched_maps(config, encoder, teacher)
    else:
        teacher.read([])  # nobody looks at its maps
    terms |= build_terms(config, feature_width(build_backbone(config.student)), teacher)
    weights = {name: weight_of(settings, config.optim.epochs) for name, settings in chosen(config).items()}
    return GuidedMoCo(moco, Guide(encoder, taps, terms, weights, head), moco_config.weight)


def matched_maps(config: PretrainConfig, encoder: nn.Module, teacher: Teacher) -> tuple[list[str], MatchedMaps]:
    """ReLUs of the student that are tapped, and MGD on them, of the stages that both networks have.

    Raises:
        UserError: when the architectures do not fit each other.
    """
    mgd_config = config.mgd
    names = Named(config.taps, config.teacher_taps)
    if not names.student and not names.teacher:
        weighted = [tap for tap in stage_taps(encoder) if mgd_config.stage_weights[tap.stage - 1] > 0]
        let_meet(teacher, encoder, weighted, config.data.image_size)
    taps = pair(encoder, teacher, names, config.data.image_size)
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
    if config.moco.bn_splits > 1:
        split_batch_norms(mgd.norms, config.moco.bn_splits)
    return [tap.relu for tap in taps], MatchedMaps(mgd, config.seed)


@torch.no_grad()
def check_local_size(encoder: nn.Module, config: PretrainConfig) -> None:
    """Raise UserError when the student cannot look at local crops of the size that is asked for."""
    training, size = encoder.training, config.data.local_size
    try:
        encoder.eval()(torch.zeros(1, 3, size, size))
    except RuntimeError as error:
        raise UserError(f"data.local_size {size} is too small for {config.student} ({error}): raise it") from error
    finally:
        encoder.train(training)


def check_sizes(config: PretrainConfig, num_images: int) -> None:
    """Raise UserError unless batch, queue, processes and data fit one another."""
    batch, queue, processes = config.optim.batch_size, config.moco.queue_size, world_size()
    if num_images < batch:
        raise UserError(
            f"{config.data.train} holds {num_images} images, fewer than optim.batch_size {batch}: "
            "add images or lower the batch size"
        )
    if config.moco.weight > 0 and queue % batch:
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

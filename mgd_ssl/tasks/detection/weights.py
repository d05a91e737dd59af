"""What a detector and its teacher begin with."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from mgd_ssl.errors import UserError
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import initial_classifier, set_head, stage_taps
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.networks.weights import Asked, load_backbone, load_trained
from mgd_ssl.networks.weights_file import read_weights
from mgd_ssl.run.folder import find_weights
from mgd_ssl.run.log import logger
from mgd_ssl.run.runtime import on_rank_zero
from mgd_ssl.tasks.detection.coco import Category
from mgd_ssl.tasks.detection.config import DetectConfig
from mgd_ssl.tasks.detection.detectron2_file import is_detectron2, is_pickle, load_detectron2
from mgd_ssl.tasks.teachers import input_asked

USUAL_STUDENT = "resnet18"
HEADS = ("head.classification_head.cls_logits.bias", "roi_heads.box_predictor.cls_score.bias")
ANCHORS_A_POSITION = 9  # of RetinaNet


class Beginning(NamedTuple):
    """A detector's backbone before its first step."""

    body: ResNet
    arch: str
    report: LoadReport | None  # None: random weights


def begin(config: DetectConfig) -> Beginning:
    """The backbone, on the CPU.

    Raises:
        UserError: for weights that do not fit, or a network that is no ResNet.
    """
    if config.backbone is None:
        arch, report = config.student or USUAL_STUDENT, None
        body: nn.Module = initial_classifier(arch, 1, config.seed)
        set_head(body, nn.Identity())
    else:
        path = config.backbone
        body, report = load_backbone(on_rank_zero(lambda: find_weights(path)), config.student)
        arch = report.arch
    if not isinstance(body, ResNet):
        raise UserError(f"a detector's backbone is a ResNet and not a {arch}: choose --student resnet18, say")
    return Beginning(body, arch, report)


def load_teacher(config: DetectConfig, categories: list[Category]) -> Teacher | None:
    """The backbone of a trained detector.

    Raises:
        UserError: when it cannot be loaded, or detects other classes.
    """
    if config.teacher is None:
        return None
    given = config.teacher
    path, normalisation = on_rank_zero(lambda: find_weights(given)), input_asked(config)
    state = {} if is_pickle(path) else read_weights(path).state
    if is_pickle(path) or is_detectron2(state):
        backbone, report, classes = load_detectron2(path, config.teacher_arch, normalisation)
    else:
        backbone, report, _ = load_trained(path, Asked(config.teacher_arch, normalisation=normalisation))
        classes = _classes(state)
        _overwrite_eps(backbone, state)
    usual = (len(categories), max(category.id for category in categories) + 1)  # the latter: raw ids from 0 on
    if classes is not None and classes not in usual and not config.teacher_of_other_classes:
        raise UserError(
            f"the teacher {path} detects {classes} classes and the data has {len(categories)}: pass one trained on the "
            "same classes, or --teacher-of-other-classes"
        )
    if classes is None:
        logger.info("the teacher %s has no detection head: its backbone guides all the same", path)
    return Teacher(backbone, report)


def _classes(state: dict[str, Tensor]) -> int | None:
    """How many classes a detector tells apart, a background not counted; None for what is no detector."""
    for name in HEADS:
        if name in state:
            outputs = len(state[name])
            return outputs // ANCHORS_A_POSITION if name == HEADS[0] else outputs - 1
    return None


def _overwrite_eps(backbone: nn.Module, state: dict[str, Tensor]) -> None:
    """torchvision's RetinaNet COCO_V1 was trained with BatchNorms of eps 0 (torchvision, `overwrite_eps`); it is told
    by its P6, which is made of P5."""
    p6 = state.get("backbone.fpn.extra_blocks.p6.weight")
    layer4 = state.get("backbone.body.layer4.0.conv1.weight")
    if p6 is None or layer4 is None or p6.shape[0] != p6.shape[1] or p6.shape[1] >= layer4.shape[1]:
        return
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0


@torch.no_grad()
def check_fits(student: nn.Module, teacher: Teacher) -> None:
    """Raise UserError unless the stages of both networks have maps of one size.

    Args:
        student: its ResNet.
        teacher: of it.
    """
    strides = [stem_stride(network) for network in (student, teacher.backbone)]
    if strides[0] != strides[1]:
        raise UserError(
            f"the student's first stage has a stride of {strides[0]} and the teacher's one of {strides[1]}: choose "
            "both among torchvision's ResNets, or both among the thin ones"
        )
    pairs = zip(stage_taps(student), stage_taps(teacher.backbone), strict=True)
    for stage, (ours, theirs) in enumerate(pairs, start=1):
        if ours.channels > theirs.channels:
            raise UserError(
                f"stage {stage} of the student has {ours.channels} channels and the teacher's only {theirs.channels}: "
                "choose a wider teacher or a thinner student"
            )


def stem_stride(network: nn.Module) -> int:
    """Pixels from one position of a ResNet's first stage to the next."""
    pools = not isinstance(network.maxpool, nn.Identity)
    return 4 if pools else 2


def freeze(body: nn.Module, stages: int) -> None:
    """Train the first stages of a ResNet no longer: the stem is the first."""
    frozen = [body.conv1, body.bn1] if stages else []
    frozen += [body.get_submodule(f"layer{stage}") for stage in range(1, stages)]
    for module in frozen:
        assert isinstance(module, nn.Module)
        module.requires_grad_(False)


def path_of(report: LoadReport | None) -> Path | None:
    """Where weights came from."""
    return None if report is None else report.path

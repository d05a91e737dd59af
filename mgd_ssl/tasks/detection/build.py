"""A detector with its guide, from settings and what both networks begin with."""

import torch
from torch import nn

from mgd_ssl.distillation.guide import Guide
from mgd_ssl.errors import UserError
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.backbones import stage_taps
from mgd_ssl.networks.stages import StageTap
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.tasks.detection.config import DetectConfig
from mgd_ssl.tasks.detection.detector import Detector, Trunk
from mgd_ssl.tasks.detection.faster_rcnn import FasterRCNNDetector
from mgd_ssl.tasks.detection.guided_detector import GuidedDetector
from mgd_ssl.tasks.detection.norms import group_norm, set_norms
from mgd_ssl.tasks.detection.padding import PaddedMaps
from mgd_ssl.tasks.detection.retinanet import RetinaNetDetector
from mgd_ssl.tasks.detection.weights import Beginning, check_fits, freeze, stem_stride
from moco.keyed import keyed_seed

BODY = "network.backbone.body."  # where a detector has its ResNet


def build(config: DetectConfig, beginning: Beginning, num_classes: int, teacher: Teacher | None) -> GuidedDetector:
    """The detector with its guide, on the CPU; the backbone is taken apart, the teacher reads the matched stages.

    Raises:
        UserError: when student and teacher do not fit each other.
    """
    taps = stage_taps(beginning.body)
    if teacher is not None:
        check_fits(beginning.body, teacher)
    student = build_detector(config, beginning, num_classes)
    if teacher is None:
        return GuidedDetector(student, Guide(student))
    chosen = [tap for tap in taps if config.mgd.stage_weights[tap.stage - 1] > 0]
    mgd = matched(config, chosen, teacher)
    names = [f"{BODY}{tap.relu}" for tap in chosen]
    return GuidedDetector(
        student, Guide(student, names, {"mgd": PaddedMaps(mgd, config.seed)}, {"mgd": config.mgd.weight})
    )


def build_detector(config: DetectConfig, beginning: Beginning, num_classes: int) -> Detector:
    """The detector alone; what is drawn at random is a function of the seed, and torch's generator is left alone."""
    settings, body = config.network, beginning.body
    trunk = Trunk(body, [tap.channels for tap in stage_taps(body)], stem_stride(body))
    set_norms(body, settings.norm, settings.group_norm_last_blocks)
    freeze(body, settings.frozen_stages)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(config.seed, "heads"))
        if settings.kind == "faster_rcnn":
            return FasterRCNNDetector(trunk, num_classes, settings.pyramid_channels)
        return RetinaNetDetector(
            trunk, num_classes, settings.pyramid_channels, settings.loss_normaliser, settings.norm_heads
        )


def matched(config: DetectConfig, taps: list[StageTap], teacher: Teacher) -> MGD:
    """The matching of these stages of the student; the teacher reads the same ones afterwards."""
    settings, by_stage = config.mgd, {tap.stage: tap for tap in teacher.stages}
    teacher.read([by_stage[tap.stage] for tap in taps])
    if settings.margin == "teacher":
        check_statistics(teacher)
    return MGD(
        [tap.channels for tap in taps],
        teacher.channels,
        teacher.margins() if settings.margin == "teacher" else None,
        settings.reducer,
        [settings.stage_weights[tap.stage - 1] for tap in taps],
        norm=group_norm,
    )


def check_statistics(teacher: Teacher) -> None:
    """Raise UserError when the teacher's BatchNorms are folded, so that their weights are no deviations."""
    norms = [teacher.backbone.get_submodule(stage.norm) for stage in teacher.stages]
    if all(isinstance(norm, nn.BatchNorm2d) and not norm.running_mean.any() for norm in norms):  # type: ignore[union-attr]
        assert teacher.report is not None
        raise UserError(
            f"the BatchNorms of the teacher {teacher.report.path} are folded, as in Caffe2's weights, so its margins "
            "are not known: set mgd.margin to 'measured'"
        )

"""Student and teacher of a classification from its settings: loaded, fitted to the classes and to each other."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from mgd_ssl.config import ClassifyConfig
from mgd_ssl.distillation.guide import Guide
from mgd_ssl.distillation.kd import LogitDistillation
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.distillation.pairs import Named, pair
from mgd_ssl.errors import UserError
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import initial_classifier, stage_taps, without_head
from mgd_ssl.networks.stages import StageTap
from mgd_ssl.networks.teacher import Teacher, let_meet
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.run.folder import find_weights
from mgd_ssl.run.log import logger
from mgd_ssl.run.runtime import on_rank_zero
from mgd_ssl.tasks import teachers
from mgd_ssl.tasks.classifier import GuidedClassifier

USUAL_STUDENT = "resnet18"


class Beginning(NamedTuple):
    """The student before its first step."""

    network: nn.Module
    arch: str
    report: LoadReport | None  # None: random weights


def begin(config: ClassifyConfig, num_classes: int) -> Beginning:
    """The student with a classifier of so many classes, on the CPU.

    Raises:
        UserError: for weights that do not fit, or an architecture that is not known.
    """
    if config.student_weights is None:
        arch = config.student or USUAL_STUDENT
        return Beginning(initial_classifier(arch, num_classes, config.seed), arch, None)
    path = config.student_weights
    loaded, report = load_backbone(on_rank_zero(lambda: find_weights(path)), config.student, with_classifier=True)
    if report.classes == num_classes:
        return Beginning(loaded, report.arch, report)
    fresh = initial_classifier(report.arch, num_classes, config.seed)
    own = {name: value for name, value in loaded.state_dict().items() if name in _trunk_keys(fresh)}
    fresh.load_state_dict({**fresh.state_dict(), **own})
    return Beginning(fresh, report.arch, report)


def _trunk_keys(network: nn.Module) -> set[str]:
    return set(without_head(network, network.state_dict()))


def load_teacher(config: ClassifyConfig, num_classes: int) -> Teacher | None:
    """The teacher, with its classifier where its logits are needed.

    Raises:
        UserError: when it is of another task than the student.
    """
    if config.teacher is None:
        return None
    teacher = teachers.load_teacher(config, with_classifier=config.kd.weight > 0)
    assert teacher is not None and teacher.report is not None
    classes = teacher.report.classes
    if config.kd.weight > 0 and classes != num_classes:
        found = "no classifier" if classes is None else f"a classifier of {classes} classes"
        raise UserError(
            f"the teacher {teacher.report.path} has {found} and the student {num_classes} classes: "
            "fine-tune the teacher on the same labels (mgd-ssl classify --student-weights), or set kd.weight to 0"
        )
    return teacher


def build(config: ClassifyConfig, student: nn.Module, teacher: Teacher | None) -> GuidedClassifier:
    """The student with its guide, on the CPU; of the teacher the taps that are not matched are left out.

    Raises:
        UserError: when student and teacher do not fit each other or the image size.
    """
    smoothing = config.optim.label_smoothing
    if teacher is None:
        return GuidedClassifier(student, Guide(student), smoothing)
    terms: dict[str, nn.Module] = {}
    weights: dict[str, float] = {}
    taps: list[StageTap] = []
    if config.mgd.weight > 0:
        taps, mgd = matched(config, student, teacher)
        terms["mgd"], weights["mgd"] = MatchedMaps(mgd, config.seed), config.mgd.weight
    else:
        teacher.read([])  # nobody looks at its maps
    if config.kd.weight > 0:
        terms["kd"], weights["kd"] = LogitDistillation(config.kd.temperature), config.kd.weight
    if not terms:
        raise UserError("mgd.weight and kd.weight are 0: set one above 0, or leave the teacher out")
    return GuidedClassifier(student, Guide(student, [tap.relu for tap in taps], terms, weights), smoothing)


def matched(config: ClassifyConfig, student: nn.Module, teacher: Teacher) -> tuple[list[StageTap], MGD]:
    """The student's taps and their matching; the teacher reads the same stages afterwards."""
    settings = config.mgd
    names, weights = Named(config.taps, config.teacher_taps), settings.stage_weights
    if not names.student and not names.teacher:
        taps = [tap for tap in stage_taps(student) if weights[tap.stage - 1] > 0]
        let_meet(teacher, student, taps, config.data.image_size)
    taps = pair(student, teacher, names, config.data.image_size, weights)
    try:
        mgd = MGD(
            [tap.channels for tap in taps],
            teacher.channels,
            _margins(settings.margins_from, teacher) if settings.margin == "teacher" else None,
            settings.reducer,
            [weights[tap.stage - 1] for tap in taps],
            settings.drop_remainder,
        )
    except ValueError as error:
        raise UserError(f"the student cannot learn from {config.teacher}: {error}") from error
    return taps, mgd


def _margins(path: Path | None, teacher: Teacher) -> list[Tensor]:
    if path is None:
        return teacher.margins()
    assert teacher.report is not None
    other = Teacher.load(on_rank_zero(lambda: find_weights(path)), teacher.report.arch)
    other.read(teacher.stages)
    return other.margins()


def tell_beginning(beginning: Beginning, num_classes: int) -> None:
    """One line on where the student's weights come from."""
    if beginning.report is None:
        logger.info("student: %s with random weights", beginning.arch)
    else:
        kept = "kept" if beginning.report.classes == num_classes else "drawn anew"
        logger.info("student %s; its classifier of %d classes is %s", beginning.report, num_classes, kept)

"""The teacher of a run from its settings: loaded, told of in the log, and remembered with the run."""

from pathlib import Path
from typing import Any, Protocol

from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.normalisation import Normalisation, Triple
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.folder import find_weights, unfinished
from mgd_ssl.run.log import logger
from mgd_ssl.run.runtime import on_rank_zero


class Taught(Protocol):
    """Settings of a run that may have a teacher."""

    @property
    def teacher(self) -> Path | None: ...  # noqa: D102

    @property
    def teacher_arch(self) -> str | None: ...  # noqa: D102

    @property
    def teacher_mean(self) -> Triple | None: ...  # noqa: D102

    @property
    def teacher_std(self) -> Triple | None: ...  # noqa: D102


def load_teacher(config: Taught, with_classifier: bool = False, with_head: bool = False) -> Teacher | None:
    """The teacher from the file that rank 0 finds: in the folder of a run under way, others might find a newer one.

    Args:
        config: of the run.
        with_classifier: keep its classifier, if it has one.
        with_head: load its projection head too, which must be there.

    Raises:
        UserError: as `load_trained` does.
    """
    path = config.teacher
    if path is None:
        return None
    found = on_rank_zero(lambda: find_weights(path))
    return Teacher.load(found, config.teacher_arch, with_classifier, with_head, input_asked(config))


def input_asked(config: Taught) -> Normalisation | None:
    """How the teacher's input is normalised by the settings; None: as its file, or what is known of it, says."""
    mean, std = config.teacher_mean, config.teacher_std
    return None if mean is None or std is None else Normalisation(mean, std)


def tell_teacher(config: Taught, teacher: Teacher | None) -> None:
    """Say how it was loaded, whose it is, under which licence, and what is odd about it."""
    if teacher is None:
        return
    report = teacher.report
    assert config.teacher is not None and report is not None
    logger.info("teacher %s", report)
    for note in report.notes():
        logger.info("teacher: %s", note)
    for warning in report.warnings():
        logger.warning("the teacher %s %s", report.path, warning)
    if config.teacher.is_dir() and (step := unfinished(report.path)):
        logger.warning("the teacher's run %s is unfinished: its weights are those of %s", config.teacher, step)


def told_of(report: LoadReport | None) -> dict[str, Any] | None:
    """Whose weights a network has, for `config.json`."""
    if report is None:
        return None
    return {"arch": report.arch, "sha256": report.sha256, "prefix": report.prefix, "md5": report.md5}


def credit(teacher: Teacher | None) -> dict[str, Any] | None:
    """What `result.json` says of the teacher, so that a student's file tells where it came from."""
    if teacher is None or teacher.report is None:
        return None
    report = teacher.report
    seen = report.recognised
    return {
        "file": report.path.name,
        "arch": report.arch,
        "sha256": report.sha256,
        "licence": report.licence,
        "known_as": None if seen is None else seen.known.name,
        "known_by": None if seen is None else "hash" if seen.proven else "name",
    }

"""A pretraining from settings to a usable student: check, build, continue where it stopped, train, export."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.images import Images
from mgd_ssl.data.samples import decoding_of
from mgd_ssl.data.sources import open_images
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.int8 import check_int8
from mgd_ssl.networks.low_precision import has_native_bfloat16
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.environment import environment
from mgd_ssl.run.folder import as_begun
from mgd_ssl.run.lock import JOBS
from mgd_ssl.run.log import logger
from mgd_ssl.run.log_file import ending_told
from mgd_ssl.run.runtime import Runtime, on_rank_zero, process, settled
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.automatic import facts_of, filled, told
from mgd_ssl.tasks.beginning import BegunEncoder, begin, tell_beginning
from mgd_ssl.tasks.moco import GuidedMoCo, build_method, check_sizes
from mgd_ssl.tasks.pretraining import Pretraining, update_of
from mgd_ssl.tasks.same_run import SameRun
from mgd_ssl.tasks.teachers import credit, load_teacher, tell_teacher, told_of
from mgd_ssl.tasks.terms import bags_of, balanced_terms, check_terms, settings_of, wants_head
from mgd_ssl.tasks.whole_run import Result, folder_of, leave, session_of, to_device, train_to_the_end
from moco.dist import world_size

UNSHUFFLED = (
    "BatchNorm is not shuffled: in one process it sees queries and keys in batches of the same images, and a positive "
    "can be told by that. MoCo shuffles the keys over several processes; --moco.bn-splits 8 does it over 8 parts in one"
)

SAME = SameRun(PretrainConfig, "the images of data.train: {} -> {}, or other names")


class Start(NamedTuple):
    """What a run begins with."""

    student: BegunEncoder
    teacher: Teacher | None
    found: str  # what is told of settings that nobody gave


@dataclass(frozen=True)
class PretrainResult(Result):
    """What a finished pretraining leaves."""

    epochs: int
    knn: dict[str, float]  # top1, top5, random_top1, ..., teacher_top1, ... in percent; empty without k-NN
    teacher: dict[str, Any] | None = None  # its file, whose it is, and the licence of its weights


def pretrain(config: PretrainConfig | None = None, **settings: Any) -> PretrainResult:
    """Pretrain a student, or continue the run in `out`.

    Args:
        config: all settings; or pass them by name, groups as dictionaries:
            `pretrain(out="run", student="resnet18", teacher="moco_v2.pth.tar", data={"train": "images"})`.

    Returns:
        The result; at once when the run is finished already.

    Raises:
        UserError: when a setting, a file or a folder is at fault; nothing was trained.
        TrainingError: when training had to stop; its checkpoints stay.
        Interrupted: after SIGTERM, SIGINT, SIGUSR2 or SIGHUP, when the state is saved.
        ValueError: for unknown settings or values out of range.
    """
    config = config or PretrainConfig(**settings)
    config = as_begun(config, config.out)
    out, train, decoding = config.out, config.data.train, decoding_of(config.data)
    with ending_told(out, frozenset({JOBS})), process(config.runtime) as runtime:
        images = on_rank_zero(lambda: open_images(train, decoding))
        facts = facts_of(config, images, runtime.device)
        config, found = filled(config, facts)
        check_sizes(config, len(images))
        check_terms(config)
        config = decided(config, runtime, config.optim.epochs * (len(images) // config.optim.batch_size))
        teacher = load_teacher(config, with_head=wants_head(config))
        if config.teacher_precision == "int8":
            check_int8(teacher, runtime.device)
        begun = begin(config)
        method = build_method(config, teacher, begun.encoder)
        if teacher is not None:
            teacher.fold()  # after its margins were read from the BatchNorms
        described = description(config, images, teacher, begun.report)
        with folder_of(out, described, SAME, PretrainResult) as finished:
            if finished is not None:
                return finished
            to_device(runtime, method, teacher)
            start = Start(begun, teacher, told(found, facts) if found else "")
            return run(config, images, start, method, runtime)


def run(config: PretrainConfig, images: Images, start: Start, method: GuidedMoCo, runtime: Runtime) -> PretrainResult:
    """Train from the newest whole checkpoint in the run's folder, or from the start, to the end."""
    teacher = start.teacher
    total_steps = config.optim.epochs * (len(images) // config.optim.batch_size)
    with session_of(config, total_steps, runtime, PretrainResult) as session:
        if start.found:
            logger.info("%s", start.found)
        logger.info("%s", summary(config, images, runtime))
        if method.contrasts and world_size() * config.moco.bn_splits == 1:
            logger.info("%s", UNSHUFFLED)
        tell_beginning(start.student)
        tell_teacher(config, teacher)
        task = Pretraining(config, method, teacher, images, session)
        return train_to_the_end(task, update_of(config, task), session, finish)


def decided(config: PretrainConfig, runtime: Runtime, steps: int) -> PretrainConfig:
    """The settings with all that they leave open decided.

    Args:
        config: of the run.
        runtime: of this process.
        steps: of the whole run.
    """
    # gradients are not measured where the networks are compiled
    measured = bool(balanced_terms({"mgd": config.mgd, **settings_of(config.terms)}))
    teacher = config.teacher_precision
    if teacher == "auto":
        teacher = "bfloat16" if has_native_bfloat16(runtime.device) else "float32"
    runtime_config = settled(config.runtime, runtime, 0 if measured else steps)
    return config.model_copy(update={"runtime": runtime_config, "teacher_precision": teacher})


def finish(task: Pretraining, session: Session) -> PretrainResult:
    """Last k-NN, then the student as a plain torchvision state dict, and the result."""
    epochs, teacher = task.config.optim.epochs, credit(task.teacher)
    result = leave(PretrainResult, task, session, epochs=epochs, teacher=teacher)
    logger.info("student's backbone: %s (torchvision's keys)", result.encoder)
    return result


def description(
    config: PretrainConfig, images: Images, teacher: Teacher | None, begun: LoadReport | None = None
) -> dict[str, Any]:
    """What a run is, as saved in its `config.json`."""
    bags = bags_of(config, images)
    return {
        "config": config.model_dump(mode="json"),
        "data": {"num_images": len(images), "fingerprint": images.fingerprint()},
        "student_weights": told_of(begun),
        "teacher": None if teacher is None else told_of(teacher.report),
        "bags": bags and bags.sha256,
        "environment": environment(),
    }


def summary(config: PretrainConfig, images: Images, runtime: Runtime) -> str:
    """One line that says what is about to happen."""
    optim, guided = config.optim, f", guided by {config.teacher}" if config.teacher else ""
    return (
        f"{config.student}{guided}: {len(images)} images, {optim.epochs} epochs of {len(images) // optim.batch_size} "
        f"steps, batch {optim.batch_size} over {world_size()} process(es), {runtime.device.type}, "
        f"{config.runtime.precision}{', compiled' if config.runtime.compile else ''}"
    )

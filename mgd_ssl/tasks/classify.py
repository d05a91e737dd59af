"""A classification from settings to a classifier: check, build, continue where it stopped, train, export."""

from dataclasses import dataclass
from typing import Any

from mgd_ssl.classify_settings import ClassifyConfig
from mgd_ssl.config import Decoding
from mgd_ssl.data.sources import scan_labelled
from mgd_ssl.errors import UserError
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.environment import environment
from mgd_ssl.run.folder import as_begun
from mgd_ssl.run.lock import JOBS
from mgd_ssl.run.log import logger
from mgd_ssl.run.log_file import ending_told
from mgd_ssl.run.runtime import Runtime, process, settled
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.classification import Classification, Parts, chosen_images, update_of
from mgd_ssl.tasks.classifier import GuidedClassifier
from mgd_ssl.tasks.guided_classifier import Beginning, begin, build, load_teacher, tell_beginning
from mgd_ssl.tasks.same_run import SameRun
from mgd_ssl.tasks.teachers import credit, tell_teacher, told_of
from mgd_ssl.tasks.whole_run import Result, folder_of, leave, session_of, to_device, train_to_the_end
from moco.dist import world_size

SAME = SameRun(ClassifyConfig, "the images of data.train or data.val: {} -> {} to learn from, or other names")


@dataclass(frozen=True)
class ClassifyResult(Result):
    """What a finished classification leaves; `encoder` is the student with its classifier."""

    epochs: int
    validation: dict[str, float]  # top1, top5 of the last epoch in percent
    best: dict[str, float]  # top1, top5 and the epoch after which top-1 was highest, chosen on the same images
    weights: str  # that are left behind and that both numbers are of: trained, or averaged (optim.ema)
    teacher: dict[str, Any] | None = None  # its file, whose it is, and the licence of its weights


def classify(config: ClassifyConfig | None = None, **settings: Any) -> ClassifyResult:
    """Train or fine-tune a classifier, or continue the run in `out`.

    Args:
        config: all settings; or pass them by name, groups as dictionaries:
            `classify(out="run", student="resnet18", data={"train": "images/train", "val": "images/val"})`.

    Returns:
        The result; at once when the run is finished already.

    Raises:
        UserError: when a setting, a file or a folder is at fault; nothing was trained.
        TrainingError: when training had to stop; its checkpoints stay.
        Interrupted: after SIGTERM, SIGINT, SIGUSR2 or SIGHUP, when the state is saved.
        ValueError: for unknown settings or values out of range.
    """
    config = config or ClassifyConfig(**settings)
    config = as_begun(config, config.out)
    out = config.out
    with ending_told(out, frozenset({JOBS})), process(config.runtime) as runtime:
        parts = open_parts(config)
        num_classes = outputs(config, parts)
        beginning, teacher = begin(config, num_classes), load_teacher(config, num_classes)
        method = build(config, beginning.network, teacher)
        if teacher is not None:
            teacher.fold()  # after its margins were read from the BatchNorms
        steps = config.optim.epochs * (len(parts.chosen) // config.optim.batch_size)
        config = config.model_copy(
            update={"student": beginning.arch, "runtime": settled(config.runtime, runtime, steps)}
        )
        run = description(config, parts, beginning, teacher)
        with folder_of(out, run, SAME, ClassifyResult) as finished:
            if finished is not None:
                return finished
            to_device(runtime, method, teacher)
            return train_from(config, parts, (beginning, teacher), method, runtime)


def train_from(
    config: ClassifyConfig,
    parts: Parts,
    networks: tuple[Beginning, Teacher | None],
    method: GuidedClassifier,
    runtime: Runtime,
) -> ClassifyResult:
    """Train from the newest whole checkpoint in the run's folder, or from the start."""
    beginning, teacher = networks
    total_steps = config.optim.epochs * (len(parts.chosen) // config.optim.batch_size)
    with session_of(config, total_steps, runtime, ClassifyResult) as session:
        logger.info("%s", summary(config, parts, beginning))
        tell_beginning(beginning, outputs(config, parts))
        tell_teacher(config, teacher)
        task = Classification(config, method, teacher, parts, session)
        return train_to_the_end(task, update_of(config, task), session, finish)


def finish(task: Classification, session: Session) -> ClassifyResult:
    """Last validation, then the student as a plain state dict, and the result."""
    epochs, teacher = task.config.optim.epochs, credit(task.teacher)
    result = leave(ClassifyResult, task, session, epochs=epochs, teacher=teacher)
    logger.info("the student with its classifier: %s", result.encoder)
    return result


def open_parts(config: ClassifyConfig) -> Parts:
    """The labelled images, those that are learnt from chosen.

    Raises:
        UserError: when they, the batch size and the number of processes do not fit one another.
    """
    data, batch, processes = config.data, config.optim.batch_size, world_size()
    train_set, val_set = scan_labelled(data.train, data.val, Decoding(data.background, data.max_pixels))
    parts = Parts(train_set, val_set, chosen_images(train_set, data.share_of_labels, config.seed))
    if len(parts.chosen) < batch:
        raise UserError(
            f"{data.train} gives {len(parts.chosen)} images to learn from, fewer than optim.batch_size {batch}: add "
            "images, raise data.share_of_labels or lower the batch size"
        )
    if batch % processes or batch // processes < 2:
        raise UserError(
            f"optim.batch_size {batch} does not give each of {processes} processes the same number of at least "
            "2 images: change either"
        )
    if len(val_set.images) < processes:
        raise UserError(f"{data.val} holds {len(val_set.images)} images for {processes} processes: start fewer")
    return parts


def outputs(config: ClassifyConfig, parts: Parts) -> int:
    """Outputs of the classifier.

    Raises:
        UserError: when there are fewer than classes.
    """
    classes = int(parts.train.labels.max()) + 1
    if config.num_classes is not None and config.num_classes < classes:
        raise UserError(
            f"num_classes is {config.num_classes} and {config.data.train} has {classes} classes: set it to {classes} "
            "or more, or leave it out"
        )
    return config.num_classes or classes


def description(config: ClassifyConfig, parts: Parts, beginning: Beginning, teacher: Teacher | None) -> dict[str, Any]:
    """What a run is, as saved in its `config.json`."""
    return {
        "task": "classification",
        "config": config.model_dump(mode="json"),
        "data": {
            "num_images": len(parts.chosen),
            "fingerprint": parts.train.images.fingerprint(),
            "val_fingerprint": parts.val.images.fingerprint(),
        },
        "student_weights": told_of(beginning.report),
        "teacher": None if teacher is None else told_of(teacher.report),
        "environment": environment(),
    }


def summary(config: ClassifyConfig, parts: Parts, beginning: Beginning) -> str:
    """One line that says what is about to happen."""
    optim, guided = config.optim, f", guided by {config.teacher}" if config.teacher else ""
    return (
        f"{beginning.arch}{guided}: {len(parts.chosen)} labelled images, {optim.epochs} epochs of "
        f"{len(parts.chosen) // optim.batch_size} steps, batch {optim.batch_size} over {world_size()} process(es), "
        f"{config.runtime.precision}{', compiled' if config.runtime.compile else ''}; "
        f"validated on {len(parts.val.images)}"
    )

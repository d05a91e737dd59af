"""A classification from settings to a classifier: check, build, continue where it stopped, train, export."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mgd_ssl.config import ClassifyConfig, Decoding
from mgd_ssl.data.loader import PREFETCH
from mgd_ssl.data.sources import scan_labelled
from mgd_ssl.errors import UserError, once_trained
from mgd_ssl.files import writing
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.checkpoint import serialised
from mgd_ssl.run.environment import environment
from mgd_ssl.run.folder import as_begun, check_same, damaged_description, nothing_trained, run_folder, saved_description
from mgd_ssl.run.lock import JOBS, in_use
from mgd_ssl.run.log import logger
from mgd_ssl.run.log_file import ending_told
from mgd_ssl.run.result import damage, write_result
from mgd_ssl.run.runtime import Runtime, on_rank_zero, process, settled
from mgd_ssl.run.session import Session
from mgd_ssl.settings import defaults, differences, flattened, free_keys
from mgd_ssl.tasks.classification import Classification, Parts, chosen_images, update_of
from mgd_ssl.tasks.classifier import GuidedClassifier
from mgd_ssl.tasks.guided_classifier import Beginning, begin, build, load_teacher, tell_beginning
from mgd_ssl.tasks.student import ENCODER, finished_result
from mgd_ssl.tasks.teachers import credit, tell_teacher, told_of
from mgd_ssl.training.loop import Pace, train
from moco.dist import world_size

FREE_KEYS = free_keys(ClassifyConfig)


@dataclass(frozen=True)
class ClassifyResult:
    """What a finished run leaves; also its `result.json`, where paths are relative, so that a run can be moved."""

    out: str  # the run's folder
    encoder: str  # file with the student and its classifier, the usual state-dict keys
    epochs: int
    steps: int
    validation: dict[str, float]  # top1, top5 of the last epoch in percent
    best: dict[str, float]  # top1, top5 and the epoch after which top-1 was highest, chosen on the same images
    teacher: dict[str, Any] | None = None  # its file, whose it is, and the licence of its weights


RESULT = tuple(field.name for field in fields(ClassifyResult))


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
    config = as_begun(config)
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
        with run_folder(out, run, check_same_run, lambda folder: finished_result(folder, RESULT)) as finished:
            if finished is not None:
                return ClassifyResult(**finished | {"out": str(out), "encoder": str(out / ENCODER)})
            for module in (method, teacher):
                if module is not None:
                    module.to(runtime.device).to(memory_format=runtime.memory_format)
            return train_to_the_end(config, parts, (beginning, teacher), method, runtime)


def train_to_the_end(
    config: ClassifyConfig,
    parts: Parts,
    networks: tuple[Beginning, Teacher | None],
    method: GuidedClassifier,
    runtime: Runtime,
) -> ClassifyResult:
    """Train from the newest whole checkpoint in the run's folder, or from the start."""
    out, optim, (beginning, teacher) = config.out, config.optim, networks
    told = on_rank_zero(lambda: damage(out, RESULT, ENCODER))
    steps_per_epoch = len(parts.chosen) // optim.batch_size
    with Session(out, optim.epochs * steps_per_epoch, runtime, config.checkpoint.keep) as session:
        if told:
            logger.warning("%s; %s and result.json are made anew from the last checkpoint", told, ENCODER)
        logger.info("%s", summary(config, parts, beginning))
        tell_beginning(beginning, outputs(config, parts))
        tell_teacher(config, teacher)
        task = Classification(config, method, teacher, parts, session)
        pace = Pace(
            optim.batch_size, steps_per_epoch, config.runtime.log_every, config.checkpoint.every_steps,
            under_way=PREFETCH * task.workers,
        )  # fmt: skip
        with once_trained(lambda: session.step):
            train(task, update_of(config, task), session, pace)
            return finish(task, session)


def finish(task: Classification, session: Session) -> ClassifyResult:
    """Last validation, then the student as a plain state dict, and the result."""
    left, weights = task.finish()
    out, encoder = session.out, session.out / ENCODER
    result = ClassifyResult(
        str(out), str(encoder), task.config.optim.epochs, session.step, teacher=credit(task.teacher), **left
    )

    def write() -> None:
        session.log.synced_bytes()  # a finished run has all its rows
        with writing(encoder):
            write_result(out, asdict(replace(result, out=".", encoder=ENCODER)), ENCODER, serialised(weights))

    on_rank_zero(write)
    logger.info("the student with its classifier: %s", encoder)
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


def check_same_run(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise UserError when a folder's run had other settings, images, weights to begin with or another teacher."""
    if old.get("task") != new["task"]:
        raise UserError(f"{out} holds a run of another command: choose another --out")
    changed = differences(completed(old["config"]), new["config"], FREE_KEYS)
    for whose in ("student_weights", "teacher"):
        told = [run[whose] and f"{run[whose]['arch']} {run[whose]['sha256'][:12]}" for run in (old, new)]
        if told[0] != told[1]:
            changed.append(f"{whose}: {told[0]} -> {told[1]}")
    if old["data"] != new["data"]:
        counts = [run["data"]["num_images"] for run in (old, new)]
        changed.append(
            f"the images of data.train or data.val: {counts[0]} -> {counts[1]} to learn from, or other names"
        )
    check_same(out, changed)


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Saved settings, with the defaults of those which the version that saved them did not have."""
    return flattened(defaults(ClassifyConfig)) | flattened(saved)


def summary(config: ClassifyConfig, parts: Parts, beginning: Beginning) -> str:
    """One line that says what is about to happen."""
    optim, guided = config.optim, f", guided by {config.teacher}" if config.teacher else ""
    return (
        f"{beginning.arch}{guided}: {len(parts.chosen)} labelled images, {optim.epochs} epochs of "
        f"{len(parts.chosen) // optim.batch_size} steps, batch {optim.batch_size} over {world_size()} process(es), "
        f"{config.runtime.precision}{', compiled' if config.runtime.compile else ''}; "
        f"validated on {len(parts.val.images)}"
    )


def check_settings(config: ClassifyConfig) -> None:
    """Raise UserError when the folder holds a run with other settings, without looking at images or weights."""
    config, out = as_begun(config), config.out
    if (out / "config.json").is_file() and (in_use(out) or not nothing_trained(out)):
        try:
            saved = completed(saved_description(out)["config"])
        except (LookupError, TypeError, AttributeError) as error:
            raise damaged_description(out) from error
        new = config.model_dump(mode="json")
        check_same(out, differences(saved, new | {"student": new["student"] or saved["student"]}, FREE_KEYS))

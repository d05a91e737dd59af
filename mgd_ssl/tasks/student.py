"""A pretraining from settings to a usable student: check, build, continue where it stopped, train, export."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.images import Images
from mgd_ssl.data.loader import PREFETCH
from mgd_ssl.data.samples import decoding_of
from mgd_ssl.data.sources import open_images
from mgd_ssl.errors import UserError, once_trained
from mgd_ssl.files import writing
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.low_precision import has_native_bfloat16
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.checkpoint import Checkpoints, serialised
from mgd_ssl.run.environment import environment
from mgd_ssl.run.folder import (
    as_begun,
    check_same,
    damaged_description,
    nothing_trained,
    run_folder,
    saved_description,
)
from mgd_ssl.run.lock import JOBS, in_use
from mgd_ssl.run.log import logger
from mgd_ssl.run.log_file import ending_told
from mgd_ssl.run.result import damage, read_result, write_result
from mgd_ssl.run.runtime import Runtime, on_rank_zero, process, settled
from mgd_ssl.run.session import Session
from mgd_ssl.settings import defaults, differences, flattened, free_keys
from mgd_ssl.tasks.beginning import BegunEncoder, begin, tell_beginning
from mgd_ssl.tasks.moco import GuidedMoCo, build_method, check_sizes
from mgd_ssl.tasks.pretraining import Pretraining, update_of
from mgd_ssl.tasks.teachers import credit, load_teacher, tell_teacher, told_of
from mgd_ssl.tasks.terms import bags_of, balanced_terms, check_terms, settings_of, wants_head
from mgd_ssl.training.loop import Pace, train
from moco.dist import world_size

UNSHUFFLED = (
    "BatchNorm is not shuffled: in one process it sees queries and keys in batches of the same images, and a positive "
    "can be told by that. MoCo shuffles the keys over several processes; --moco.bn-splits 8 does it over 8 parts in one"
)

FREE_KEYS = free_keys(PretrainConfig)


@dataclass(frozen=True)
class PretrainResult:
    """What a finished run leaves; also its `result.json`, where paths are relative, so that a run can be moved."""

    out: str  # the run's folder
    encoder: str  # file with the student's backbone, torchvision's state-dict keys
    epochs: int
    steps: int
    knn: dict[str, float]  # top1, top5, random_top1, ..., teacher_top1, ... in percent; empty without k-NN
    teacher: dict[str, Any] | None = None  # its file, whose it is, and the licence of its weights


ENCODER = "encoder.pt"


RESULT = tuple(field.name for field in fields(PretrainResult))


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
    config = as_begun(config)
    out, train, decoding = config.out, config.data.train, decoding_of(config.data)
    with ending_told(out, frozenset({JOBS})), process(config.runtime) as runtime:
        images = on_rank_zero(lambda: open_images(train, decoding))
        check_sizes(config, len(images))
        check_terms(config)
        config = decided(config, runtime, config.optim.epochs * (len(images) // config.optim.batch_size))
        teacher = load_teacher(config, with_head=wants_head(config))
        begun = begin(config)
        method = build_method(config, teacher, begun.encoder)
        if teacher is not None:
            teacher.fold()  # after its margins were read from the BatchNorms
        described = description(config, images, teacher, begun.report)
        with run_folder(out, described, check_same_run, finished_run) as finished:
            if finished is not None:
                return PretrainResult(**finished | {"out": str(out), "encoder": str(out / ENCODER)})
            for module in (method, teacher):
                if module is not None:
                    module.to(runtime.device).to(memory_format=runtime.memory_format)
            return run(config, images, (begun, teacher), method, runtime)


def run(
    config: PretrainConfig,
    images: Images,
    networks: tuple[BegunEncoder, Teacher | None],
    method: GuidedMoCo,
    runtime: Runtime,
) -> PretrainResult:
    """Train from the newest whole checkpoint in the run's folder, or from the start, to the end."""
    out, (begun, teacher) = config.out, networks
    told = on_rank_zero(lambda: damage(out, RESULT, ENCODER))
    optim, steps_per_epoch = config.optim, len(images) // config.optim.batch_size
    with Session(out, optim.epochs * steps_per_epoch, runtime, config.checkpoint.keep) as session:
        if told:
            logger.warning("%s; %s and result.json are made anew from the last checkpoint", told, ENCODER)
        logger.info("%s", summary(config, images, runtime))
        if method.contrasts and world_size() * config.moco.bn_splits == 1:
            logger.info("%s", UNSHUFFLED)
        tell_beginning(begun)
        tell_teacher(config, teacher)
        task = Pretraining(config, method, teacher, images, session)
        pace = Pace(
            optim.batch_size, steps_per_epoch, config.runtime.log_every, config.checkpoint.every_steps,
            under_way=PREFETCH * task.workers,
        )  # fmt: skip
        with once_trained(lambda: session.step):
            train(task, update_of(config, task), session, pace)
            return finish(task, session)


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
    left, weights = task.finish()
    out, encoder = session.out, session.out / ENCODER
    result = PretrainResult(
        str(out), str(encoder), task.config.optim.epochs, session.step, teacher=credit(task.teacher), **left
    )

    def write() -> None:
        session.log.synced_bytes()  # a finished run has all its rows
        with writing(encoder):
            write_result(out, asdict(replace(result, out=".", encoder=ENCODER)), ENCODER, serialised(weights))

    on_rank_zero(write)
    logger.info("student's backbone: %s (torchvision's keys)", encoder)
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


def finished_run(out: Path) -> dict[str, Any] | None:
    """`finished_result` of a pretraining."""
    return finished_result(out, RESULT)


def finished_result(out: Path, keys: Sequence[str]) -> dict[str, Any] | None:
    """The result of a run that is finished; None when it is not, or a damaged result can be made anew.

    Args:
        out: the run's folder.
        keys: of its result.

    Raises:
        UserError: when it cannot: training would start from nothing.
    """
    try:
        result, told = read_result(out, keys, ENCODER), ""
        if result is None and (out / ENCODER).exists():
            told = f"{out / 'result.json'} is missing"
    except UserError as error:
        result, told = None, str(error)
    if told and not Checkpoints(out / "checkpoints").paths():
        raise UserError(f"{told}, and no checkpoint is left to make it anew from: restore it, or choose another --out")
    return result


def check_same_run(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise UserError when a folder's run had other settings, images or another teacher."""
    changed = differences(completed(old["config"]), new["config"], FREE_KEYS)
    for whose in ("student_weights", "teacher"):
        before, now = old.get(whose), new[whose]
        if identity(before) != identity(now):
            told = [each and f"{each['arch']} {each['sha256'][:12]}" for each in (before, now)]
            changed.append(f"{whose}: {told[0]} -> {told[1]}")
    if old.get("bags") != new["bags"]:
        changed.append("the bags of terms.bingo.bags: others by their SHA-256")
    if old["data"] != new["data"]:
        counts = [run["data"]["num_images"] for run in (old, new)]
        changed.append(f"the images of data.train: {counts[0]} -> {counts[1]}, or other names")
    check_same(out, changed)


def summary(config: PretrainConfig, images: Images, runtime: Runtime) -> str:
    """One line that says what is about to happen."""
    optim, guided = config.optim, f", guided by {config.teacher}" if config.teacher else ""
    return (
        f"{config.student}{guided}: {len(images)} images, {optim.epochs} epochs of {len(images) // optim.batch_size} "
        f"steps, batch {optim.batch_size} over {world_size()} process(es), {runtime.device.type}, "
        f"{config.runtime.precision}{', compiled' if config.runtime.compile else ''}"
    )


def check_settings(config: PretrainConfig) -> None:
    """Raise UserError when the folder holds a run with other settings, without looking at images or weights."""
    config, out = as_begun(config), config.out
    if (out / "config.json").is_file() and (in_use(out) or not nothing_trained(out)):
        try:
            saved = completed(saved_description(out)["config"])
        except (LookupError, TypeError, AttributeError) as error:
            raise damaged_description(out) from error
        check_same(out, differences(saved, config.model_dump(mode="json"), FREE_KEYS))


def identity(teacher: dict[str, Any] | None) -> list[Any] | None:
    """What has to stay the same of a saved teacher; earlier versions saved no more of it."""
    return [teacher[key] for key in ("arch", "sha256", "prefix")] if teacher else None


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Saved settings, with the defaults of those which the version that saved them did not have.

    Before there was a background transparency was dropped, which no setting does any more, so it gets none.
    """
    known = flattened(defaults(PretrainConfig))
    known.pop("data.background")
    return known | flattened(saved)

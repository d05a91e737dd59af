"""Pretraining from settings to a usable student: check, build, continue where it stopped, train, export."""

import fcntl
import json
import os
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from mgd_ssl.config import PretrainConfig, differences, flattened, parse
from mgd_ssl.data.images import Images
from mgd_ssl.data.samples import decoding_of
from mgd_ssl.data.sources import open_images
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.errors import Interrupted, UserError, once_trained
from mgd_ssl.evaluation.monitor import KNNMonitor
from mgd_ssl.files import ELSEWHERE, write_whole, writing
from mgd_ssl.leftovers import sweep
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.backbones import initial_encoder, stage_taps
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.networks.weights import md5_of
from mgd_ssl.printable import printable
from mgd_ssl.run.checkpoint import Checkpoints, find_weights, serialised, taken_over
from mgd_ssl.run.environment import environment
from mgd_ssl.run.folder import JOBS as JOBS
from mgd_ssl.run.folder import damaged_description, forget_start, no_run, nothing_trained, saved_description, unfinished
from mgd_ssl.run.log import RunLog, logger
from mgd_ssl.run.log_file import ending_told, is_free
from mgd_ssl.run.result import damage, read_plain, read_result, write_result
from mgd_ssl.run.runtime import Runtime, on_rank_zero, process
from mgd_ssl.tasks.moco import DistilledMoCo
from mgd_ssl.training.loop import Trainer
from moco import MoCo
from moco.dist import world_size
from moco.keyed import keyed_seed
from moco.split_norm import split_batch_norms

UNSHUFFLED = (
    "BatchNorm is not shuffled: in one process it sees queries and keys in batches of the same images, and a positive "
    "can be told by that. MoCo shuffles the keys over several processes; --moco.bn-splits 8 does it over 8 parts in one"
)


@dataclass(frozen=True)
class PretrainResult:
    """What a finished run leaves; also its `result.json`, where paths are relative, so that a run can be moved."""

    out: str  # the run's folder
    encoder: str  # file with the student's backbone, torchvision's state-dict keys
    epochs: int
    steps: int
    knn: dict[str, float]  # top1, top5, random_top1, ..., teacher_top1, ... in percent; empty without k-NN


ENCODER = "encoder.pt"
RESULT = tuple(field.name for field in fields(PretrainResult))


def main(argv: Sequence[str]) -> int:
    """`mgd-ssl pretrain`: settings from the command line, then `pretrain`."""
    result = pretrain(parse(PretrainConfig, argv, "mgd-ssl pretrain"))
    if os.environ.get("RANK", "0") == "0":
        print(f"finished: {printable(result.encoder)}")
    return 0


def check(argv: Sequence[str]) -> Path:
    """The run's folder, when the settings are valid and the folder holds no run with others.

    Raises:
        UserError: when they are not.
    """
    config = parse(PretrainConfig, argv, "mgd-ssl pretrain")
    out, _ = required(config)
    saved = out / "config.json"
    if saved.is_file() and (in_use(out) or not nothing_trained(out)):
        try:
            changed = differences(completed(saved_description(out)["config"]), config.model_dump(mode="json"))
        except (LookupError, TypeError, AttributeError) as error:
            raise damaged_description(out) from error
        check_same(out, changed)
    return out


def required(config: PretrainConfig) -> tuple[Path, Path]:
    """`out` and `data.train`, which have no default."""
    if config.out is None:
        raise UserError("out is not set: pass --out, the folder this run may write to")
    if config.data.train is None:
        raise UserError("data.train is not set: pass --data.train, a folder of images or tar shards")
    return config.out, config.data.train


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
    out, train = required(config)
    with ending_told(out, frozenset({JOBS})), process(config.runtime) as runtime:
        images = on_rank_zero(lambda: open_images(train, decoding_of(config.data)))
        check_sizes(config, len(images))
        teacher = load_teacher(config)
        method = build_method(config, teacher)
        if teacher is not None:
            teacher.fold()  # after its margins were read from the BatchNorms
        with run_folder(out, description(config, images, teacher), check_same_run, finished_run) as finished:
            if finished is not None:
                return PretrainResult(**finished | {"out": str(out), "encoder": str(out / ENCODER)})
            for module in (method, teacher):
                if module is not None:
                    module.to(runtime.device).to(memory_format=runtime.memory_format)
            return run(config, out, images, teacher, method, runtime)


def run(
    config: PretrainConfig,
    out: Path,
    images: Images,
    teacher: Teacher | None,
    method: DistilledMoCo,
    runtime: Runtime,
) -> PretrainResult:
    """Train from the newest whole checkpoint in `out`, or from the start, to the end."""

    def skipped(name: str, of: Images) -> SkippedFiles:
        return SkippedFiles(out / f"skipped_{name}.jsonl", of, config.data.max_unreadable)

    checkpoints = Checkpoints(out / "checkpoints", config.checkpoint.keep)
    complaints: list[str] = []
    newest = on_rank_zero(lambda: checkpoints.newest_whole(complaints.append))
    state = checkpoints.read(newest) if newest else None
    if told := on_rank_zero(lambda: damage(out, RESULT, ENCODER)):
        complaints.append(f"{told}; {ENCODER} and result.json are made anew from the last checkpoint")
    total_steps = config.optim.epochs * (len(images) // config.optim.batch_size)
    with RunLog(out, total_steps, state["step"] if state else 0, state["metrics_bytes"] if state else 0) as log:
        for complaint in complaints:
            logger.warning("%s", complaint)
        logger.info("%s", summary(config, images, runtime))
        if world_size() * config.moco.bn_splits == 1:
            logger.info("%s", UNSHUFFLED)
        if teacher is not None:
            logger.info("teacher %s", teacher.report)
            warn_of_unfinished(config, teacher)
        monitor = None
        if config.knn.train is not None or config.knn.val is not None:
            monitor = KNNMonitor(
                config.knn,
                runtime,
                image_size=config.data.image_size,
                seed=config.seed,
                workers=runtime.data_workers(config.data.workers),
                skipped=skipped,
                decoding=decoding_of(config.data),
            )
        trainer = Trainer(config, method, teacher, images, runtime, monitor, checkpoints, skipped("train", images))
        if state is not None and newest is not None:
            with taken_over(newest):
                trainer.load(state)
            logger.info("continuing after step %d of %d, from %s", trainer.step, total_steps, newest)
        trainer.wrap()
        with once_trained(lambda: trainer.step):
            stopped_by = trainer.train(log)
            if stopped_by is not None:
                name = signal.Signals(stopped_by).name
                raise Interrupted(
                    f"stopped by {name} after step {trainer.step}: the same command continues from there", stopped_by
                )
            return finish(config, out, trainer, log)


def load_teacher(config: PretrainConfig) -> Teacher | None:
    """The teacher from the file that rank 0 finds: in the folder of a run under way, others might find a newer one."""
    path = config.teacher
    return None if path is None else Teacher.load(on_rank_zero(lambda: find_weights(path)), config.teacher_arch)


def warn_of_unfinished(config: PretrainConfig, teacher: Teacher) -> None:
    """Say so when the teacher's folder is that of a run that has not come to its end."""
    assert config.teacher is not None and teacher.report is not None
    if config.teacher.is_dir() and (step := unfinished(teacher.report.path)):
        logger.warning("the teacher's run %s is unfinished: its weights are those of %s", config.teacher, step)


def finish(config: PretrainConfig, out: Path, trainer: Trainer, log: RunLog) -> PretrainResult:
    """Last k-NN, then the student as a plain torchvision state dict, and the result."""
    knn: dict[str, float] = {}
    if trainer.monitor is not None:
        accuracy = trainer.evaluate(log)
        knn = {"top1": accuracy.top1, "top5": accuracy.top5, **trainer.knn_lines}
    encoder = out / ENCODER
    result = PretrainResult(str(out), str(encoder), config.optim.epochs, trainer.step, knn)

    def write() -> None:
        backbone = trainer.method.moco.encoder_q.state_dict()
        plain = {name: value.cpu().contiguous() for name, value in backbone.items() if not name.startswith("fc.")}
        log.synced_bytes()  # a finished run has all its rows
        with writing(encoder):
            write_result(out, asdict(replace(result, out=".", encoder=ENCODER)), ENCODER, serialised(plain))

    on_rank_zero(write)
    logger.info("student's backbone: %s (torchvision's keys)", encoder)
    return result


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


def description(config: PretrainConfig, images: Images, teacher: Teacher | None) -> dict[str, Any]:
    """What a run is, as saved in its `config.json`."""
    report, taught_by = teacher.report if teacher is not None else None, None
    if report is not None:
        md5 = on_rank_zero(lambda: md5_of(report.path))
        taught_by = {"arch": report.arch, "sha256": report.sha256, "prefix": report.prefix, "md5": md5}
    return {
        "config": config.model_dump(mode="json"),
        "data": {"num_images": len(images), "fingerprint": images.fingerprint()},
        "teacher": taught_by,
        "environment": environment(),
    }


def finished_run(out: Path) -> dict[str, Any] | None:
    """The result of a run that is finished; None when it is not, or a damaged result can be made anew.

    Raises:
        UserError: when it cannot: training would start from nothing.
    """
    try:
        result, told = read_result(out, RESULT, ENCODER), ""
        if result is None and (out / ENCODER).exists():
            told = f"{out / 'result.json'} is missing"
    except UserError as error:
        result, told = None, str(error)
    if told and not Checkpoints(out / "checkpoints").paths():
        raise UserError(f"{told}, and no checkpoint is left to make it anew from: restore it, or choose another --out")
    return result


@contextmanager
def run_folder(
    out: Path,
    run: dict[str, Any],
    check: Callable[[Path, dict[str, Any], dict[str, Any]], None],
    read: Callable[[Path], dict[str, Any] | None] = read_plain,
) -> Iterator[dict[str, Any] | None]:
    """Open a run's folder for this run alone; yields the saved result if the run is finished.

    A start that failed before its first step holds nothing, so other settings may take its place.

    Args:
        out: the folder, made if need be.
        run: what the run is, saved as its `config.json`.
        check: raises UserError when the saved description (second argument) is of another run than the third.
        read: the saved result, None where there is none.

    Raises:
        UserError: when the folder cannot be, is in use, is damaged, holds something else, or another run.
        DiskError: when the disk does not take it.
    """
    locks: list[Any] = []  # open while the block runs

    def enter() -> dict[str, Any] | None:
        with writing(out, ELSEWHERE, at_start=True):
            out.mkdir(parents=True, exist_ok=True)
            if not is_free(out, frozenset({JOBS})):
                raise no_run(out)
            locks.append((out / ".lock").open("w"))
            try:
                # not flock, which the data workers would inherit and hold for seconds after this process was killed
                fcntl.lockf(locks[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{out} is in use by another process: wait for it, or choose another --out") from error
            for folder in (out, out / "checkpoints", *(out / JOBS).glob("*/")):
                sweep(folder)
            # asked under the lock: nobody can be about to train
            if not (out / "config.json").exists() or nothing_trained(out):
                forget_start(out)
                write_whole(out / "config.json", json.dumps(run, indent=2).encode())
        try:
            check(out, saved_description(out), run)
        except (LookupError, TypeError, AttributeError) as error:
            raise damaged_description(out) from error
        return read(out)

    try:
        yield on_rank_zero(enter)
    finally:
        for lock in locks:
            lock.close()


def in_use(out: Path) -> bool:
    """Whether a process works in a run's folder: asks for its lock without taking it."""
    if not (out / ".lock").is_file():
        return False
    question = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock of 64-bit Linux
    with (out / ".lock").open() as lock:
        answer = fcntl.fcntl(lock, fcntl.F_GETLK, question)
    return bool(struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK)


def check_same_run(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise UserError when a folder's run had other settings, images or another teacher."""
    changed = differences(completed(old["config"]), new["config"])
    if identity(old["teacher"]) != identity(new["teacher"]):
        told = [run["teacher"] and f"{run['teacher']['arch']} {run['teacher']['sha256'][:12]}" for run in (old, new)]
        changed.append(f"teacher: {told[0]} -> {told[1]}")
    if old["data"] != new["data"]:
        counts = [run["data"]["num_images"] for run in (old, new)]
        changed.append(f"the images of data.train: {counts[0]} -> {counts[1]}, or other names")
    check_same(out, changed)


def identity(teacher: dict[str, Any] | None) -> list[Any] | None:
    """What has to stay the same of a saved teacher; earlier versions saved no more of it."""
    return [teacher[key] for key in ("arch", "sha256", "prefix")] if teacher else None


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Saved settings, with the defaults of those which the version that saved them did not have.

    Before there was a background transparency was dropped, which no setting does any more, so it gets none.
    """
    defaults = flattened(PretrainConfig().model_dump(mode="json"))
    defaults.pop("data.background")
    return defaults | flattened(saved)


def check_same(out: Path, changed: list[str]) -> None:
    """Raise UserError when anything changed."""
    if changed:
        raise UserError(
            f"{out} holds a run with other settings ({'; '.join(changed)}): restore them, or choose another --out"
        )


def summary(config: PretrainConfig, images: Images, runtime: Runtime) -> str:
    """One line that says what is about to happen."""
    optim, guided = config.optim, f", guided by {config.teacher}" if config.teacher else ""
    return (
        f"{config.student}{guided}: {len(images)} images, {optim.epochs} epochs of {len(images) // optim.batch_size} "
        f"steps, batch {optim.batch_size} over {world_size()} process(es), {runtime.device.type}, "
        f"{config.runtime.precision}"
    )

"""A detection from settings to a detector: check, build, continue where it stopped, train, evaluate, export."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from mgd_ssl.errors import UserError
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.environment import environment
from mgd_ssl.run.folder import as_begun
from mgd_ssl.run.lock import JOBS
from mgd_ssl.run.log import logger
from mgd_ssl.run.log_file import ending_told
from mgd_ssl.run.runtime import Runtime, on_rank_zero, process, settled
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.detection.average_precision import check_installed
from mgd_ssl.tasks.detection.build import build
from mgd_ssl.tasks.detection.coco import check_same_categories, open_split
from mgd_ssl.tasks.detection.config import DetectConfig
from mgd_ssl.tasks.detection.detection import Detection, Parts, length
from mgd_ssl.tasks.detection.guided_detector import GuidedDetector
from mgd_ssl.tasks.detection.weights import Beginning, begin, load_teacher
from mgd_ssl.tasks.same_run import SameRun
from mgd_ssl.tasks.teachers import tell_teacher, told_of
from mgd_ssl.tasks.whole_run import Result, folder_of, leave, session_of, to_device, train_to_the_end
from mgd_ssl.training.update import Update, sgd
from moco.dist import world_size

SAME = SameRun(DetectConfig, "the images or boxes: {} -> {} to learn from, or others")
NORMS = (nn.BatchNorm2d, nn.GroupNorm, FrozenBatchNorm2d)
WARMUP_START = 0.001  # share of the peak


@dataclass(frozen=True)
class DetectResult(Result):
    """What a finished detection leaves; `encoder` is the detector, torchvision's state-dict keys."""

    average_precision: dict[str, float | None]  # COCO's twelve numbers in percent
    classes: dict[str, dict[str, float | None]]  # AP, AP50, AP75 of every class


def detect(config: DetectConfig | None = None, **settings: Any) -> DetectResult:
    """Train a detector, or continue the run in `out`.

    Args:
        config: all settings; or pass them by name, groups as dictionaries:
            `detect(out="run", backbone="r18", data={"root": "coco"})`.

    Returns:
        The result; at once when the run is finished already.

    Raises:
        UserError: when a setting, a file or a folder is at fault; nothing was trained.
        TrainingError: when training had to stop; its checkpoints stay.
        Interrupted: after SIGTERM, SIGINT, SIGUSR2 or SIGHUP, when the state is saved.
        ValueError: for unknown settings or values out of range.
    """
    config = config or DetectConfig(**settings)
    config = as_begun(config, config.out)
    check_installed()
    out = config.out
    with ending_told(out, frozenset({JOBS})), process(config.runtime) as runtime:
        parts = open_parts(config)
        beginning, teacher = begin(config), load_teacher(config, parts.train.categories)
        method = build(config, beginning, len(parts.train.categories), teacher)
        if teacher is not None:
            teacher.fold()  # after its margins were read from the BatchNorms
        steps = length(config, len(parts.train.trainable))
        decided = {"student": beginning.arch, "runtime": settled(config.runtime, runtime, steps)}
        config = config.model_copy(update=decided)
        run = description(config, parts, beginning, teacher)
        with folder_of(out, run, SAME, DetectResult) as finished:
            if finished is not None:
                return finished
            to_device(runtime, method, teacher)
            return train_from(config, parts, (beginning, teacher), method, runtime)


def train_from(
    config: DetectConfig,
    parts: Parts,
    networks: tuple[Beginning, Teacher | None],
    method: GuidedDetector,
    runtime: Runtime,
) -> DetectResult:
    """Train from the newest whole checkpoint in the run's folder, or from the start."""
    beginning, teacher = networks
    with session_of(config, length(config, len(parts.train.trainable)), runtime, DetectResult) as session:
        tell_start(config, parts, beginning, session.total_steps)
        tell_teacher(config, teacher)
        task = Detection(config, method, teacher, parts, session)
        return train_to_the_end(task, update_of(config, task), session, finish)


def finish(task: Detection, session: Session) -> DetectResult:
    """Last evaluation, then the detector as a plain state dict, and the result."""
    result = leave(DetectResult, task, session)
    logger.info("the detector: %s (torchvision's keys)", result.encoder)
    return result


def update_of(config: DetectConfig, task: Detection) -> Update:
    """SGD with the run's schedule; norms do not decay."""
    optim = config.optim
    optimizer = sgd(task.module.parameters(), optim.lr, optim.momentum, optim.weight_decay, optim.nesterov)
    of_norms = {id(p) for module in task.module.modules() if isinstance(module, NORMS) for p in module.parameters()}
    (group,) = optimizer.param_groups
    norms = [parameter for parameter in group["params"] if id(parameter) in of_norms]
    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in of_norms]
    if norms:
        optimizer.add_param_group({**group, "params": norms, "weight_decay": 0.0})
    return Update(task.module, optimizer, LearningRate(config, task.total_steps), task.runtime)


class LearningRate:
    """Linear warm-up from a thousandth of the peak, then a tenth at every milestone, by step."""

    def __init__(self, config: DetectConfig, total_steps: int) -> None:
        optim = config.optim
        self.peak, self.warmup = optim.lr, round(optim.warmup * total_steps)
        self.milestones = [round(share * total_steps) for share in optim.milestones]

    def __call__(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        lr = self.peak * 0.1 ** sum(step >= milestone for milestone in self.milestones)
        if step < self.warmup:
            lr *= WARMUP_START + (1 - WARMUP_START) * step / self.warmup
        return lr


def open_parts(config: DetectConfig) -> Parts:
    """Images and boxes of both splits.

    Raises:
        UserError: when they, the batch size and the number of processes do not fit one another.
    """
    data, batch, processes = config.data, config.optim.batch_size, world_size()
    parts = on_rank_zero(
        lambda: Parts(open_split(data, "train", data.max_unreadable), open_split(data, "val", max_missing=0))
    )
    check_same_categories(*parts)
    trainable = len(parts.train.trainable)
    if trainable < batch:
        raise UserError(
            f"{parts.train.path} has {trainable} images with a box, fewer than optim.batch_size {batch}: add images or "
            "lower the batch size"
        )
    if batch % processes:
        raise UserError(
            f"optim.batch_size {batch} does not give each of {processes} processes the same number of images: change "
            "either"
        )
    return parts


def description(config: DetectConfig, parts: Parts, beginning: Beginning, teacher: Teacher | None) -> dict[str, Any]:
    """What a run is, as saved in its `config.json`."""
    return {
        "task": "detection",
        "config": config.model_dump(mode="json"),
        "data": {
            "num_images": len(parts.train.trainable),
            "fingerprint": parts.train.fingerprint(),
            "val_fingerprint": parts.val.fingerprint(),
            "categories": [list(category) for category in parts.train.categories],
        },
        "backbone": told_of(beginning.report),
        "teacher": None if teacher is None else told_of(teacher.report),
        "environment": environment(),
    }


def tell_start(config: DetectConfig, parts: Parts, beginning: Beginning, steps: int) -> None:
    """What is about to happen."""
    guided = f", guided by {config.teacher}" if config.teacher else ""
    logger.info(
        "%s on %s%s: %d images with a box, %d steps of %d over %d process(es), %s",
        config.network.kind, beginning.arch, guided, len(parts.train.trainable), steps, config.optim.batch_size,
        world_size(), config.runtime.precision,
    )  # fmt: skip
    for split in parts:
        logger.info("%s", split.told())
    logger.info("backbone: %s", beginning.report or f"{beginning.arch} with random weights")
    if beginning.report is None and config.network.norm == "frozen":
        logger.warning(
            "network.norm is 'frozen' and the backbone's weights are random, so that nothing normalises: "
            "--network.norm group trains far better"
        )

"""Settings of a pretraining that nobody gave, from its images and the machine.

The published recipe is for 1.28 million images of 224 pixels on GPUs, and there these rules give exactly that. What
they give for small data, and why, is in docs/running.md.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from mgd_ssl.automatic import filled, unfilled
from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.decode import identify
from mgd_ssl.data.images import Images
from mgd_ssl.data.order import subset
from mgd_ssl.run.runtime import Runtime, on_rank_zero
from moco.dist import world_size

IMAGENET_IMAGES = 1_281_167  # ILSVRC2012, training split
SAMPLE = 200  # images whose sizes are looked at
SIZE, STEP = 224, 32  # pixels: the published views, and what the last maps of a network are finer by
BATCH, LEAST_BATCH, CPU_BATCH = 256, 16, 32  # published; BatchNorm wants some; a CPU is hardly faster with more
EPOCHS, LEAST_STEPS, CPU_STEPS = 200, 2000, 3000
LR, WARMUP_EPOCHS, EVALUATIONS = 0.03, 3.0, 40
QUEUE, COMPRESS_QUEUE = 65536, 16384
MOMENTUM, SHORT_MOMENTUM, SHORT = 0.999, 0.99, 10_000  # steps below which a run is short
BLUR, MGD_WEIGHT = (0.1, 2.0), 1e-4  # at 224 pixels


@dataclass(frozen=True)
class Facts:
    """What the rules look at."""

    num_images: int
    edge: int | None  # median of the shorter edges of some images, in pixels; None: none of them can be read
    looked_at: int  # images whose edges these are
    processes: int
    cpu: bool


class Found(NamedTuple):
    """A value, and where it comes from in a few words."""

    value: Any
    why: str


Rule = Callable[[PretrainConfig, Facts], Found]


def from_data(config: PretrainConfig, images: Images, runtime: Runtime) -> tuple[PretrainConfig, str]:
    """The settings with numbers for all that was left to the data, the same on all ranks, and one line that tells them.

    Args:
        config: what the user gave, which stays as it is.
        images: to be trained on.
        runtime: of this process.

    Returns:
        Settings, and `auto: data.image_size 64 (median edge 64 of 200 images), ...`; an empty line where all was given.
    """
    if not unfilled(config):
        return config, ""
    cpu, processes = runtime.device.type == "cpu", world_size()
    config, told = resolved(config, on_rank_zero(lambda: facts_of(images, config.seed, processes, cpu)))
    return config, f"auto: {', '.join(told)}" if told else ""


def facts_of(images: Images, seed: int, processes: int, cpu: bool) -> Facts:
    """Facts on the images, of some by their headers: a function of the seed.

    Args:
        images: to be trained on.
        seed: of the run.
        processes: of the run.
        cpu: whether it computes on CPUs.
    """
    edges = list(_edges(images, seed))
    edge = round(statistics.median(edges)) if edges else None
    return Facts(len(images), edge, len(edges), processes, cpu)


def _edges(images: Images, seed: int) -> Iterator[int]:
    for index in subset(len(images), SAMPLE, seed, "sizes").tolist():
        try:
            yield min(identify(images.read(index), images.decoding).size)
        except Exception:  # of a file that cannot be read, for which the run has an account
            continue


def resolved(config: PretrainConfig, facts: Facts) -> tuple[PretrainConfig, list[str]]:
    """The settings with numbers for all that was left to the data, and what they became: `epochs 200 (3000 steps)`.

    Args:
        config: what the user gave, which stays as it is.
        facts: on images and machine.
    """
    told = []
    for key, rule in RULES.items():
        if key in unfilled(config):
            found = rule(config, facts)
            config = filled(config, {key: found.value})
            if _acts(key, config):
                told.append(f"{key} {_shown(found.value)}{found.why and f' ({found.why})'}")
    return config, told


def _acts(key: str, config: PretrainConfig) -> bool:
    """Whether a setting makes a difference to a run."""
    group, _, term = key.rpartition(".")[0].partition(".")
    if group == "terms":
        return bool(getattr(config.terms, term).weight > 0)
    if group == "mgd":
        return config.teacher is not None
    return group != "knn" or config.knn.train is not None


def _shown(value: Any) -> str:
    return " ".join(map(_shown, value)) if isinstance(value, tuple) else f"{value:.4g}" if value % 1 else f"{value:.0f}"


# the rules, in an order in which each finds what it needs


def _image_size(config: PretrainConfig, facts: Facts) -> Found:
    if facts.edge is None:
        return Found(SIZE, "no image can be read")
    size = min(SIZE, STEP * max(1, round(facts.edge / STEP)))
    return Found(size, f"median edge {facts.edge} of {facts.looked_at} images")


def _blur_sigma(config: PretrainConfig, facts: Facts) -> Found:
    size = config.data.image_size
    return Found(tuple(round(sigma * size / SIZE, 4) for sigma in BLUR), "")


def _batch_size(config: PretrainConfig, facts: Facts) -> Found:
    most = CPU_BATCH if facts.cpu else BATCH
    eighth = 1 << (max(1, facts.num_images // 8).bit_length() - 1)  # a power of two
    parts = facts.processes * config.moco.bn_splits
    batch = min(most, max(LEAST_BATCH, eighth))
    return Found(max(2, batch // parts) * parts, f"{facts.num_images} images")


def _steps_per_epoch(config: PretrainConfig, facts: Facts) -> int:
    return max(1, facts.num_images // config.optim.batch_size)


def _epochs(config: PretrainConfig, facts: Facts) -> Found:
    steps = _steps_per_epoch(config, facts)
    wanted = max(LEAST_STEPS, EPOCHS * steps)
    if facts.cpu:
        wanted = min(wanted, CPU_STEPS)
    epochs = math.ceil(wanted / steps)
    return Found(epochs, f"{epochs * steps} steps")


def _lr(config: PretrainConfig, facts: Facts) -> Found:
    return Found(LR * max(1.0, config.optim.batch_size / BATCH), "")


def _warmup_epochs(config: PretrainConfig, facts: Facts) -> Found:
    return Found(min(WARMUP_EPOCHS, config.optim.epochs / 20), "")


def _momentum(config: PretrainConfig, facts: Facts) -> Found:
    short = config.optim.epochs * _steps_per_epoch(config, facts) < SHORT
    return Found(SHORT_MOMENTUM if short else MOMENTUM, "")


def _every_epochs(config: PretrainConfig, facts: Facts) -> Found:
    return Found(max(1, round(config.optim.epochs / EVALUATIONS)), "")


def _mgd_weight(config: PretrainConfig, facts: Facts) -> Found:
    return Found(MGD_WEIGHT * (SIZE / config.data.image_size) ** 2, "")


def _queue(most: int) -> Rule:
    def rule(config: PretrainConfig, facts: Facts) -> Found:
        batch = config.optim.batch_size
        return Found(max(1, min(most, facts.num_images // 4) // batch) * batch, "")

    return rule


RULES: dict[str, Rule] = {
    "data.image_size": _image_size,
    "data.blur_sigma": _blur_sigma,
    "optim.batch_size": _batch_size,
    "optim.epochs": _epochs,
    "optim.lr": _lr,
    "optim.warmup_epochs": _warmup_epochs,
    "moco.queue_size": _queue(QUEUE),
    "moco.momentum": _momentum,
    "mgd.weight": _mgd_weight,
    "terms.seed.queue_size": _queue(QUEUE),
    "terms.compress.queue_size": _queue(COMPRESS_QUEUE),
    "terms.bingo.queue_size": _queue(QUEUE),
    "knn.every_epochs": _every_epochs,
}

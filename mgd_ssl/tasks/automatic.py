"""Settings of a pretraining that nobody gave, from its images and its device; for ImageNet they are the published ones.

A rule never touches a setting that was given; what is found here is saved with the run, which goes on with it.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.decode import identify
from mgd_ssl.data.images import Images
from mgd_ssl.data.order import subset
from mgd_ssl.networks.activations import maps_before_activations
from mgd_ssl.networks.backbones import build_backbone, stage_taps
from mgd_ssl.run.runtime import on_rank_zero
from mgd_ssl.setting_keys import automatic_keys, changed, given_keys, value_of
from mgd_ssl.view_settings import local_size
from moco.dist import world_size

SAMPLE = 200  # images whose size is looked at
LEAST_EDGE, PUBLISHED_EDGE = 64, 224  # pixels; below 64 the last maps of a ResNet have one position
SMALLEST_BATCH = 16
BATCHES_AN_EPOCH = 12  # at least
QUEUE_SHARE = 4  # a queue holds at most one in so many images: else an image meets itself as a negative
SHORT_RUN = 10_000  # steps; a key encoder of momentum 0.999 is still the random one for a thousand of them
CPU_IMAGES = 200_000  # of 64 pixels through a ResNet-18 in about an hour on a few cores
PUBLISHED_WEIGHTS = (0.125, 0.25, 0.5, 1.0)  # of the stages
PUBLISHED_ELEMENTS = 100_352.0  # of a ResNet-18's maps at 224 pixels: 4 stages of weight * C * H * W = 25,088
QUEUES = ("moco.queue_size", "terms.seed.queue_size", "terms.compress.queue_size", "terms.bingo.queue_size")


@dataclass(frozen=True)
class Facts:
    """What the settings follow from."""

    num_images: int
    edge: int  # pixels, median of the short sides
    on_cpu: bool
    parts: int  # of a batch, each of two images at least: processes times BatchNorm's parts


def edge_of(images: Images, seed: int) -> int:
    """Median short side in pixels of some images, of which only headers are looked at; 224 where none is readable."""
    sides = []
    for index in subset(len(images), SAMPLE, seed, "sizes").tolist():
        try:
            sides.append(min(identify(images.read(index), images.decoding).size))
        except Exception:  # decoders raise anything; the run will count it
            continue
    return int(statistics.median(sides)) if sides else PUBLISHED_EDGE


def facts_of(config: PretrainConfig, images: Images, device: torch.device) -> Facts:
    """Of this run; images are looked at where their size is asked for."""
    edge = config.data.image_size
    if "data.image_size" not in given_keys(config):
        edge = on_rank_zero(lambda: edge_of(images, config.seed))
    return Facts(len(images), edge, device.type == "cpu", world_size() * config.moco.bn_splits)


def filled(config: PretrainConfig, facts: Facts) -> tuple[PretrainConfig, dict[str, Any]]:
    """The settings with those filled in that were not given.

    Returns:
        Them, and what was found that is not the default, by its dotted name.
    """
    found: dict[str, Any] = {}
    missing = [key for key in automatic_keys(type(config)) if key not in given_keys(config)]
    for key, rule in RULES.items():  # in this order: some follow from others
        if key in missing:
            default = value_of(config, key)
            config = changed(config, {key: rule(config, facts)})
            if value_of(config, key) != default:
                found[key] = value_of(config, key)
    return config, found


def _image_size(config: PretrainConfig, facts: Facts) -> int:
    return min(max(facts.edge // 16 * 16, LEAST_EDGE), PUBLISHED_EDGE)


def _blur_sigma(config: PretrainConfig, facts: Facts) -> tuple[float, float]:
    share = config.data.image_size / PUBLISHED_EDGE
    weakest, strongest = config.data.blur_sigma
    return round(weakest * share, 3), round(strongest * share, 3)


def _local_size(config: PretrainConfig, facts: Facts) -> int:
    if config.data.local_crops == 0:
        return config.data.local_size  # nobody looks at it
    return local_size(config.data.image_size)


def _batch_size(config: PretrainConfig, facts: Facts) -> int:
    most = min(config.optim.batch_size, max(SMALLEST_BATCH, facts.num_images // BATCHES_AN_EPOCH))
    power = 2 ** (most.bit_length() - 1)
    return max(2 * facts.parts, power // facts.parts * facts.parts)


def _epochs(config: PretrainConfig, facts: Facts) -> int:
    if not facts.on_cpu:
        return config.optim.epochs
    images = CPU_IMAGES * (LEAST_EDGE / config.data.image_size) ** 2
    return min(config.optim.epochs, max(1, round(images / facts.num_images)))


def _warmup_epochs(config: PretrainConfig, facts: Facts) -> float:
    return min(config.optim.warmup_epochs, config.optim.epochs / 20)


def _momentum(config: PretrainConfig, facts: Facts) -> float:
    steps = config.optim.epochs * (facts.num_images // config.optim.batch_size)
    return config.moco.momentum if steps >= SHORT_RUN else 0.99


def _queue_size(key: str) -> Callable[[PretrainConfig, Facts], int]:
    def rule(config: PretrainConfig, facts: Facts) -> int:
        published, batch = value_of(config, key), config.optim.batch_size
        if value_of(config, key.replace("queue_size", "weight")) == 0:
            return int(published)  # nobody looks at it
        return max(batch, min(published, facts.num_images // QUEUE_SHARE) // batch * batch)

    return rule


def _mgd_weight(config: PretrainConfig, facts: Facts) -> float:
    mgd = config.mgd
    if config.teacher is None or mgd.weight == 0:
        return mgd.weight
    network = build_backbone(config.student)
    maps = maps_before_activations(network, config.data.image_size)  # [1, C, H, W] each
    names = config.taps or [tap.relu for tap in stage_taps(network)]
    if not maps.keys() >= set(names):
        return mgd.weight  # of names that are told of where networks are paired
    weights = PUBLISHED_WEIGHTS[-len(names) :]  # not the given ones: with larger ones MGD is to count for more
    elements = sum(weight * maps[name].numel() for weight, name in zip(weights, names, strict=False))
    return float(f"{mgd.weight * PUBLISHED_ELEMENTS / elements:.3g}")


RULES: dict[str, Callable[[PretrainConfig, Facts], Any]] = {
    "data.image_size": _image_size,
    "data.local_size": _local_size,
    "data.blur_sigma": _blur_sigma,
    "optim.batch_size": _batch_size,
    "optim.epochs": _epochs,
    "optim.warmup_epochs": _warmup_epochs,
    "moco.momentum": _momentum,
    **{key: _queue_size(key) for key in QUEUES},
    "mgd.weight": _mgd_weight,
}


def told(found: dict[str, Any], facts: Facts) -> str:
    """One line on what was found."""
    values = ", ".join(f"{key} {_shown(value)}" for key, value in found.items())
    device = "a CPU" if facts.on_cpu else "a GPU"
    return f"not given, so from {facts.num_images} images of {facts.edge} pixels and {device}: {values}"


def _shown(value: Any) -> str:
    return " ".join(f"{each:g}" for each in value) if isinstance(value, tuple) else f"{value:g}"

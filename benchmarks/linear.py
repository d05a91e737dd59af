"""`python -m benchmarks.linear`: what the search costs, and loses, beside one head, all heads and live features."""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from rich.console import Console
from rich.table import Table

from benchmarks.linear_sets import sets
from linear_eval.feature_batches import CachedSource, LiveSource, Transform, standardising
from linear_eval.probe import Probe
from linear_eval.protocols import Protocol, Round, load_protocol
from mgd_ssl.command_line import parse
from mgd_ssl.config import MAX_SIZE, RuntimeConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.order import TrainingOrder
from mgd_ssl.evaluation.features import Features, extract_features
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.frozen import FrozenBackbone
from mgd_ssl.networks.weights import LoadReport
from mgd_ssl.run.log import RunLog
from mgd_ssl.run.runtime import Runtime, process
from mgd_ssl.settings import Settings


class BenchConfig(Settings):
    """Measure the search against one head, and the cached path against live features."""

    images: int = Field(50_000, ge=1000, le=10**9)
    """Rows of the synthetic table, a fifth of them for validation again as many."""
    dim: int = Field(512, ge=2, le=2**16)
    """Size of a feature vector."""
    classes: int = Field(100, ge=2, le=10**6)
    """Classes."""
    noise: float = Field(1.0, gt=0, le=1e6)
    """Deviation of a feature around its class's mean, which has deviation 1 times a falling spectrum."""
    rounds: int = Field(3, ge=1, le=10**6)
    """Rounds counted; in each, one head and the search are trained one after the other."""
    epochs: int = Field(100, ge=1, le=10**6)
    """Length of a training; the rounds of the search shrink with it."""
    all_the_way: bool = False
    """Also train every head all the way, and compare what is chosen."""
    choices: bool = False
    """Instead: compare what is chosen on a dozen data sets, with as many seeds as `rounds`."""
    arch: str = "resnet18"
    """Backbone of the live features; its weights are random here."""
    image_size: int = Field(224, ge=32, le=MAX_SIZE)
    """Edge of a crop in pixels."""
    runtime: RuntimeConfig = RuntimeConfig(threads=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table, and the same as JSON on the last line."""
    config = parse(BenchConfig, sys.argv[1:] if argv is None else argv, "python -m benchmarks.linear")
    with process(config.runtime) as runtime:
        if config.choices:
            return choices(config, runtime)
        result = {**search_cost(config, runtime), **live_cost(config, runtime)}
    per_image = result["live_images_per_second"], result["extraction_images_per_second"]
    result["live_hours"] = config.epochs * config.images / per_image[0] / 3600
    result["cached_hours"] = (1.2 * config.images / per_image[1] + result["search_seconds"]) / 3600
    result["cached_is_faster_by"] = result["live_hours"] / result["cached_hours"]
    table = Table("", "measured")
    for name, value in result.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}")
    Console().print(table)
    print(json.dumps(result))
    return 0


def synthetic(config: BenchConfig, count: int, seed: int) -> Features:
    """Gaussian classes with a falling spectrum: [count, dim] and their classes."""
    means = np.random.default_rng(0).standard_normal((config.classes, config.dim)).astype(np.float32)
    spectrum = (np.arange(1, config.dim + 1) ** -0.5).astype(np.float32)
    generator = np.random.default_rng(seed)
    labels = generator.integers(config.classes, size=count)
    noise = generator.standard_normal((count, config.dim), dtype=np.float32) * config.noise
    return Features(np.maximum(0, means[labels] * spectrum + noise + 0.2), labels)


def variants(epochs: int) -> dict[str, Protocol]:
    """One head, the search, and all heads all the way, of the length asked for."""
    base = load_protocol("sweep").model_dump() | {"epochs": epochs}
    shrink = epochs / load_protocol("sweep").epochs
    rounds = [r | {"epochs": r["epochs"] * shrink, "steps": round(r["steps"] * min(1, shrink))} for r in base["rounds"]]
    one = {"lrs": (0.01,), "weight_decays": (0.0,), "rounds": ()}
    return {
        "one": Protocol(**base | one),
        "search": Protocol(**base | {"rounds": rounds}),
        "all": Protocol(**base | {"rounds": (Round(heads=rounds[0]["heads"], epochs=epochs).model_dump(),)}),
    }


class Trained(NamedTuple):
    """One whole evaluation."""

    seconds: float
    cpu_seconds: float  # of this process, which other work on the machine does not add to
    top1: float
    lr: float


def trained(protocol: Protocol, train: Features, val: Features, runtime: Runtime, seed: int = 0) -> Trained:
    """Time of an evaluation, its accuracy in percent, and the learning rate it ended with."""
    started, cpu_started = time.perf_counter(), time.process_time()
    source, val_source = (
        CachedSource(features, standardising(train.values, False, runtime.device), runtime.device)
        for features in (train, val)
    )
    classes, dim = int(train.labels.max()) + 1, train.values.shape[1]
    probe = Probe(protocol, seed, classes, dim, train.labels, source, source, val_source, runtime.device)
    with tempfile.TemporaryDirectory() as folder, RunLog(Path(folder), probe.total_steps + 1, 0) as log:
        probe.train(log, lambda: False, lambda: None)
        top1 = probe.result().top1[0]
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return Trained(seconds, cpu_seconds, top1, probe.settings[0].lr)


def choices(config: BenchConfig, runtime: Runtime) -> int:
    """Print what the search's choice loses on each data set, and its cost as a multiple of one head's."""
    protocols = variants(config.epochs)
    columns = ["data set", "all: lr", "all: top-1", "search: lr", "search: top-1", "lost", "cost", "cost of all"]
    table = Table(*columns)
    result = {}
    for name, make in sets(runtime).items():
        train, val = make()
        runs = [
            {kind: trained(protocol, train, val, runtime, seed) for kind, protocol in protocols.items()}
            for seed in range(config.rounds)
        ]
        lost = [run["all"].top1 - run["search"].top1 for run in runs]
        cost = {
            kind: statistics.median(run[kind].cpu_seconds / run["one"].cpu_seconds for run in runs)
            for kind in ("search", "all")
        }
        result[name] = {"lost": lost, "cost": cost["search"], "cost_of_all": cost["all"]}
        found = [
            " ".join(f"{value:.4g}" for value in values)
            for kind in ("all", "search")
            for values in ([run[kind].lr for run in runs], [run[kind].top1 for run in runs])
        ]
        told = " ".join(f"{value:+.2f}" for value in lost)
        table.add_row(name, *found, told, f"{cost['search']:.1f}", f"{cost['all']:.1f}")
    Console(width=160).print(table)
    print(json.dumps(result))
    return 0


def search_cost(config: BenchConfig, runtime: Runtime) -> dict[str, float]:
    """The search beside one head, interleaved."""
    train, val = synthetic(config, config.images, 1), synthetic(config, config.images // 5, 2)
    protocols = variants(config.epochs)
    runs: list[dict[str, Trained]] = [
        {name: trained(protocols[name], train, val, runtime) for name in ("one", "search")}
        for _ in range(config.rounds)
    ]
    ratios = [run["search"].seconds / run["one"].seconds for run in runs]
    cpu_ratios = [run["search"].cpu_seconds / run["one"].cpu_seconds for run in runs]
    if config.all_the_way:
        runs[-1]["all"] = trained(protocols["all"], train, val, runtime)
    found = {f"{name}_{what}": value for name, one in runs[-1].items() for what, value in one._asdict().items()}
    return found | {
        "one_seconds": statistics.median(run["one"].seconds for run in runs),
        "search_seconds": statistics.median(run["search"].seconds for run in runs),
        "search_over_one_head": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "search_over_one_head_cpu": statistics.median(cpu_ratios),
        "lowest_cpu_ratio": min(cpu_ratios),
        "highest_cpu_ratio": max(cpu_ratios),
    }


def live_cost(config: BenchConfig, runtime: Runtime, count: int = 64) -> dict[str, float]:
    """Images per second through crops and backbone, live and while the cache is filled, after a warm-up."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (12, 15, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((500, 400), Image.Resampling.BICUBIC).save(folder / f"{i:03d}.jpg")
        images, labels = ImageList.scan(folder), np.arange(count)
        network = build_backbone(config.arch)
        network.fc = torch.nn.Identity()
        backbone = FrozenBackbone(network, LoadReport(folder, "", config.arch, "", 0, {}))
        backbone.to(runtime.device).to(memory_format=runtime.memory_format)
        live = LiveSource(
            backbone, images, labels, Transform(), config.image_size, 0, runtime, 0, lambda unreadable: None
        )  # fmt: skip
        speeds: dict[str, list[float]] = {"live": [], "extraction": []}
        for _ in range(1 + config.rounds):
            started = time.perf_counter()
            with live.batches(np.arange(count), TrainingOrder(count, count, 1, 0, 0, 0, 1)) as batches:
                next(batches)[0].sum().item()
            speeds["live"].append(count / (time.perf_counter() - started))
            started = time.perf_counter()
            extract_features(
                backbone, images, labels, np.arange(count), runtime, image_size=config.image_size, normalise=False
            )  # fmt: skip
            speeds["extraction"].append(count / (time.perf_counter() - started))
    return {f"{name}_images_per_second": statistics.median(speed[1:]) for name, speed in speeds.items()}


if __name__ == "__main__":
    sys.exit(main())

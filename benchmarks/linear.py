"""`python -m benchmarks.linear`: what the search costs, and loses, beside one head, all heads and live features."""

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from rich.table import Table

from benchmarks.linear_sets import Gaussian, Split, sets
from linear_eval.feature_batches import CachedSource, LiveSource, Transform, standardising
from linear_eval.logistic import Data, LogisticProbe
from linear_eval.probe import Probe
from linear_eval.protocols import LogisticProtocol, Protocol, Round, load_protocol
from mgd_ssl.bench.tables import show, value_table
from mgd_ssl.bench.timing import Times, clock_of, compared, interleaved, timed
from mgd_ssl.command_line import parse
from mgd_ssl.config import MAX_SIZE, RuntimeConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.images import Unreadable
from mgd_ssl.data.order import TrainingOrder
from mgd_ssl.data.sources import Labelled
from mgd_ssl.evaluation.features import FeatureExtractor
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.frozen import FrozenBackbone
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
    logreg: bool = False
    """Instead: compare logistic regression with the search on the same data sets."""
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
        if config.logreg:
            return regressions(config, runtime)
        result = {**search_cost(config, runtime), **live_cost(config, runtime)}
    per_image = result["live_images_per_second"], result["extraction_images_per_second"]
    result["live_hours"] = config.epochs * config.images / per_image[0] / 3600
    result["cached_hours"] = (1.2 * config.images / per_image[1] + result["search_seconds"]) / 3600
    result["cached_is_faster_by"] = result["live_hours"] / result["cached_hours"]
    show(value_table(f"{config.images} x {config.dim}, {config.classes} classes", result), result)
    return 0


def variants(epochs: int) -> dict[str, Protocol | LogisticProtocol]:
    """One head, the search, and all heads all the way, of the length asked for."""
    sweep = load_protocol("sweep")
    assert isinstance(sweep, Protocol)
    base, shrink = sweep.model_dump() | {"epochs": epochs}, epochs / sweep.epochs
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
    lr: float  # of a logistic regression its C


def trained(protocol: Protocol | LogisticProtocol, split: Split, runtime: Runtime, seed: int) -> Trained:
    """Time of an evaluation, its accuracy in percent, and the learning rate it ended with."""

    def evaluate() -> tuple[float, float]:
        transform = standardising(split.train.values, protocol.normalise, runtime.device)
        if not protocol.standardise:
            transform = Transform(protocol.normalise)
        source, val_source = (CachedSource(features, transform, runtime.device) for features in split)
        labels, dim = split.train.labels, split.train.values.shape[1]
        classes = int(labels.max()) + 1
        probe: Probe | LogisticProbe
        if isinstance(protocol, LogisticProtocol):
            probe = LogisticProbe(protocol, seed, Data(labels, classes, source, val_source), runtime.device)
        else:
            probe = Probe(protocol, seed, classes, dim, labels, source, source, val_source, runtime.device)
        with tempfile.TemporaryDirectory() as folder, RunLog(Path(folder), probe.total_steps + 1, 0) as log:
            probe.train(log, lambda: False, lambda: None)
            (setting,) = probe.settings
            chosen = 1 / (setting.weight_decay * len(labels)) if isinstance(probe, LogisticProbe) else setting.lr
            return probe.result().top1[0], chosen

    cpu_seconds, (seconds, found) = timed(lambda: timed(evaluate), time.process_time)
    return Trained(seconds, cpu_seconds, *found)


class Runs:
    """The same evaluations in every round, whose number is the seed."""

    def __init__(
        self, protocols: Mapping[str, Protocol | LogisticProtocol], split: Split, runtime: Runtime, rounds: int
    ) -> None:
        seeds = {name: iter(range(rounds)) for name in protocols}

        def next_of(name: str) -> Trained:
            return trained(protocols[name], split, runtime, next(seeds[name]))

        self.all = interleaved({name: partial(next_of, name) for name in protocols}, rounds, warmup=0)
        self.wall = Times({name: [run.seconds for run in runs] for name, runs in self.all.items()})
        self.cpu = Times({name: [run.cpu_seconds for run in runs] for name, runs in self.all.items()})


def choices(config: BenchConfig, runtime: Runtime) -> int:
    """Print what the search's choice loses on each data set, and its cost as a multiple of one head's."""
    columns = ["data set", "all: lr", "all: top-1", "search: lr", "search: top-1", "lost", "cost", "cost of all"]
    table = Table(*columns)
    result = {}
    for name, make in sets(runtime).items():
        runs = Runs(variants(config.epochs), make(), runtime, config.rounds)
        lost = [full.top1 - search.top1 for full, search in zip(runs.all["all"], runs.all["search"], strict=True)]
        cost, cost_of_all = (runs.cpu.ratio(kind, "one") for kind in ("search", "all"))
        result[name] = {"lost": lost, "cost": cost, "cost_of_all": cost_of_all}
        found = [
            " ".join(f"{value:.4g}" for value in values)
            for kind in ("all", "search")
            for values in ([run.lr for run in runs.all[kind]], [run.top1 for run in runs.all[kind]])
        ]
        told = " ".join(f"{value:+.2f}" for value in lost)
        table.add_row(name, *found, told, f"{cost:.1f}", f"{cost_of_all:.1f}")
    show(table, result, width=160)
    return 0


def regressions(config: BenchConfig, runtime: Runtime) -> int:
    """Print what logistic regression gains over the search on each data set, and what both cost beside one head."""
    table = Table("data set", "sweep: lr", "sweep: top-1", "logreg: C", "logreg: top-1", "gained", "cost", "of sweep")
    of_length, result = variants(config.epochs), {}
    protocols = {"one": of_length["one"], "search": of_length["search"], "logreg": load_protocol("logreg")}
    for name, make in sets(runtime).items():
        runs = Runs(protocols, make(), runtime, config.rounds)
        search, logreg = (runs.all[kind] for kind in ("search", "logreg"))
        gained = [one.top1 - other.top1 for one, other in zip(logreg, search, strict=True)]
        costs = [runs.cpu.ratio(kind, "one") for kind in ("logreg", "search")]
        result[name] = {"gained": gained, "cost": costs[0], "cost_of_sweep": costs[1]}
        columns = [[run.lr for run in search], [run.top1 for run in search]]
        columns += [[run.lr for run in logreg], [run.top1 for run in logreg], gained]
        table.add_row(name, *(" ".join(f"{v:.4g}" for v in values) for values in columns), *(f"{c:.1f}" for c in costs))
    show(table, result, width=160)
    return 0


def search_cost(config: BenchConfig, runtime: Runtime) -> dict[str, float]:
    """The search beside one head, interleaved."""
    split = Gaussian(config.images, config.dim, config.classes, config.noise).split(config.images // 5)
    protocols = variants(config.epochs)
    runs = Runs({name: protocols[name] for name in ("one", "search")}, split, runtime, config.rounds)
    last = {name: several[-1] for name, several in runs.all.items()}
    if config.all_the_way:
        last["all"] = trained(protocols["all"], split, runtime, config.rounds - 1)
    found = {f"{name}_{what}": value for name, one in last.items() for what, value in one._asdict().items()}
    for name in runs.all:
        found[f"{name}_seconds"] = runs.wall.median(name)
    for suffix, times in (("", runs.wall), ("_cpu", runs.cpu)):
        ratios = times.ratios("search", "one")
        found[f"search_over_one_head{suffix}"] = statistics.median(ratios)
        found[f"lowest{suffix}_ratio"], found[f"highest{suffix}_ratio"] = min(ratios), max(ratios)
    return found


class Readable:
    """An account of files that can all be decoded."""

    def note(self, unreadable: Sequence[Unreadable]) -> None:
        """There are none."""
        assert not unreadable


def live_cost(config: BenchConfig, runtime: Runtime, count: int = 64) -> dict[str, float]:
    """Images per second through crops and backbone, live and while the cache is filled, after a warm-up."""
    with tempfile.TemporaryDirectory() as name:
        images, rows = made_images(Path(name), count), np.arange(count)
        network = build_backbone(config.arch)
        network.fc = torch.nn.Identity()
        backbone = FrozenBackbone(network, LoadReport(Path(name), "", config.arch, "", 0, {}))
        backbone.to(runtime.device).to(memory_format=runtime.memory_format)
        source = LiveSource(backbone, images, rows, Transform(), config.image_size, 0, runtime, 0, Readable())

        def live() -> None:
            with source.batches(rows, TrainingOrder(count, count, 1, 0, 0, 0, 1)) as batches:
                next(batches)

        def extraction() -> None:
            labelled = Labelled(images, rows)
            FeatureExtractor(backbone, runtime, config.image_size, normalise=False)(labelled, rows)

        work = {"live": live, "extraction": extraction}
        times = compared(work, config.rounds, clock=clock_of(runtime.device))
    return {f"{name}_images_per_second": count / times.median(name) for name in work}


def made_images(folder: Path, count: int) -> ImageList:
    """Smooth images of 500 x 400 pixels, as JPEG files."""
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 15, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((500, 400), Image.Resampling.BICUBIC).save(folder / f"{i:03d}.jpg")
    return ImageList.scan(folder)


if __name__ == "__main__":
    sys.exit(main())

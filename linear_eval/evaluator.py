"""A linear evaluation from settings to a number with its protocol: features, heads, result."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from linear_eval.command import LinearConfig, folder_of
from linear_eval.feature_batches import CachedSource, LiveSource, Source, Transform, standardising
from linear_eval.feature_cache import FeatureCache
from linear_eval.logistic import Data, LogisticProbe
from linear_eval.probe import Probe, stages
from linear_eval.protocols import LogisticProtocol, Protocol, load_protocol
from linear_eval.same_evaluation import HEAD, RESULT, check_same_evaluation, finished_evaluation, hash_of_labels
from mgd_ssl.data.order import held_out
from mgd_ssl.data.samples import decoding_as_in
from mgd_ssl.data.sources import Labelled, scan_labelled
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.errors import once_trained
from mgd_ssl.evaluation.features import Features
from mgd_ssl.files import writing
from mgd_ssl.networks.frozen import FrozenBackbone
from mgd_ssl.networks.placing import placed
from mgd_ssl.networks.untrained import find_evaluated, untrained
from mgd_ssl.run.checkpoint import serialised
from mgd_ssl.run.environment import environment
from mgd_ssl.run.folder import run_folder, run_image_size, run_in
from mgd_ssl.run.log import logger
from mgd_ssl.run.log_file import ending_told
from mgd_ssl.run.result import Evaluation, damage, write_result
from mgd_ssl.run.runtime import Runtime, on_rank_zero, process
from mgd_ssl.run.session import Session
from mgd_ssl.run.stop import StopRequest


def linear(config: LinearConfig | None = None, **settings: Any) -> tuple[Evaluation, Path]:
    """Evaluate a checkpoint, or continue an evaluation.

    Args:
        config: all settings; or pass them by name: `linear(checkpoint="runs/r18", data="imagenet", protocol="moco")`.

    Returns:
        The evaluation, and the file it was saved as.

    Raises:
        UserError: when a setting, a file or a folder is at fault.
        TrainingError: when it had to stop; its checkpoints stay.
        Interrupted: after SIGTERM, SIGINT, SIGUSR2 or SIGHUP, when the state is saved.
        ValueError: for unknown settings or values out of range.
    """
    config = config or LinearConfig(**settings)
    checkpoint, data, out = config.checkpoint, config.data, folder_of(config)
    protocol = load_protocol(config.protocol)
    name = protocol.name + (chosen.suffix if (chosen := untrained(checkpoint)) else "")
    with ending_told(seed_folder(out, name, config.seeds[0])), process(config.runtime) as runtime:
        weights = on_rank_zero(lambda: find_evaluated(checkpoint))
        backbone = FrozenBackbone.load(weights, config.arch)
        placed(backbone, runtime.device, runtime.memory_format)
        decoding = decoding_as_in(run_in(checkpoint), config.background, config.max_pixels)
        train, val = scan_labelled(data / "train", data / "val", decoding)
        num_classes = int(train.labels.max()) + 1
        total_steps(protocol, train[1], 0)  # sizes fit, before anything is done
        evaluator = Evaluator(config, protocol, out, runtime, backbone, train, val, num_classes)
        with StopRequest().listening() as stop:
            try:
                results = [evaluator.run(seed, stop) for seed in config.seeds]
            finally:
                stop.finish()
        evaluation = evaluator.evaluation(results)
        with once_trained(lambda: len(results)):
            return evaluation, on_rank_zero(lambda: evaluation.save(out))


def total_steps(protocol: Protocol | LogisticProtocol, labels: np.ndarray, seed: int) -> int:
    """Steps of an evaluation of a training set [n]; of a logistic regression the values of C, and the last fit.

    Raises:
        UserError: when a batch takes more images than there are, or does not divide over the processes.
    """
    judged_on = held_out(labels, protocol.held_out, seed)
    if isinstance(protocol, LogisticProtocol):
        return protocol.count + 1
    return sum(stage.steps for stage in stages(protocol, len(labels), judged_on))


def seed_folder(out: Path, name: str, seed: int) -> Path:
    """Where the evaluation with a seed has its log, checkpoints and result, by the name of the results."""
    return out / f"linear_{name}_seed{seed}"


class Evaluator:
    """One backbone, one protocol, one data set; a seed at a time.

    Args:
        config: for paths and data workers.
        protocol: what to do.
        out: folder for results and cached features.
        runtime: device and precision.
        backbone: on the device.
        train: images and their labels.
        val: images and their labels.
        num_classes: of both.
    """

    def __init__(
        self,
        config: LinearConfig,
        protocol: Protocol | LogisticProtocol,
        out: Path,
        runtime: Runtime,
        backbone: FrozenBackbone,
        train: Labelled,
        val: Labelled,
        num_classes: int,
    ) -> None:
        self.config, self.protocol, self.out, self.runtime = config, protocol, out, runtime
        self.backbone, self.train, self.val, self.num_classes = backbone, train, val, num_classes
        self.image_size = config.image_size or run_image_size(run_in(config.checkpoint))
        self.workers = runtime.data_workers(config.workers)
        self.cache = FeatureCache(out / "linear_features", backbone, runtime, self.image_size, self.workers)
        self._features: dict[str, Features] = {}

    @property
    def name(self) -> str:
        """Of the results: the protocol's, with the encoder where that is an untrained one."""
        chosen = untrained(self.backbone.report.path)
        return self.protocol.name + (chosen.suffix if chosen else "")

    def run(self, seed: int, stop: StopRequest) -> dict[str, Any]:
        """Result of one seed; at once when it is there already."""
        folder = seed_folder(self.out, self.name, seed)
        described = self.description(seed)
        with (
            ending_told(folder),
            run_folder(folder, described, check_same_evaluation, finished_evaluation) as finished,
        ):
            return finished or self._run(seed, folder, stop)

    def _run(self, seed: int, folder: Path, stop: StopRequest) -> dict[str, Any]:
        damaged = on_rank_zero(lambda: damage(folder, RESULT, HEAD))
        steps = total_steps(self.protocol, self.train[1], seed)
        with Session(folder, steps, self.runtime) as session:
            if damaged:
                logger.warning("%s; %s and result.json are made anew", damaged, HEAD)
            logger.info("%s; seed %d", self.protocol_string(), seed)
            logger.info("backbone %s", self.backbone.report)
            skipped = [
                SkippedFiles(folder / f"skipped_{name}.jsonl", images, self.config.max_unreadable, "--max-unreadable")
                for name, (images, _) in (("train", self.train), ("val", self.val))
            ]
            session.accounts += skipped
            probe = self.probe(seed, skipped, stop)
            if session.state is not None:
                with session.taking_over():
                    probe.load(session.state["probe"])

            def save() -> None:
                session.step = probe.finished_steps
                session.share_accounts()
                session.save({"probe": probe.state()})

            with once_trained(lambda: probe.finished_steps):
                ended = probe.train(session.log, stop.agreed, save)
            self.backbone.check_untouched()
            if not ended:
                raise stop.interrupted(f"after step {probe.finished_steps}")
            session.share_accounts()
            on_rank_zero(session.log.synced_bytes)  # a finished evaluation has all its rows
            return self._finish(probe, folder)

    def probe(self, seed: int, skipped: Sequence[SkippedFiles], stop: StopRequest) -> Probe | LogisticProbe:
        """What trains the heads, with the features it needs computed or found."""
        device, protocol = self.runtime.device, self.protocol
        val = self.features("val", skipped[1], stop)
        transform, table = Transform(protocol.normalise), None
        if protocol.standardise or protocol.features == "cached":
            table = self.features("train", skipped[0], stop)
        if protocol.standardise:
            assert table is not None
            transform = standardising(table.values, protocol.normalise, device)
        images, labels = self.train
        cached = None
        if protocol.features == "cached":
            assert table is not None
            cached = CachedSource(table, transform, device)
        source: Source = cached or LiveSource(
            self.backbone, images, labels, transform, self.image_size, seed, self.runtime, self.workers,
            skipped[0],
        )  # fmt: skip
        dim = val.values.shape[1]
        val_source = CachedSource(val, transform, device)
        if isinstance(protocol, LogisticProtocol):
            assert cached is not None
            return LogisticProbe(protocol, seed, Data(labels, self.num_classes, cached, val_source), device)
        return Probe(protocol, seed, self.num_classes, dim, labels, source, cached, val_source, device)

    def features(self, split: str, skipped: SkippedFiles, stop: StopRequest) -> Features:
        """Features of centre crops of "train" or "val", for all seeds."""
        if split not in self._features:
            labelled = self.train if split == "train" else self.val

            def check_stop() -> None:
                skipped.share()
                if stop.agreed():
                    raise stop.interrupted(f"while computing features of {split}")

            self._features[split] = self.cache.features(split, labelled, skipped, check_stop)
        return self._features[split]

    def _finish(self, probe: Probe | LogisticProbe, folder: Path) -> dict[str, Any]:
        """Measure the last head once, and save it beside the result."""
        scores, [setting] = probe.result(), probe.settings
        result = {
            "top1": scores.top1[0],
            "top5": scores.top5[0],
            "loss": scores.loss[0],
            "lr": setting.lr,
            "weight_decay": setting.weight_decay,
            "rounds": probe.rounds,
        }
        transform = probe.val.transform
        head = {"weight": probe.heads.weight.cpu(), "bias": probe.heads.bias.cpu(), "normalise": transform.normalise}
        if transform.mean is not None and transform.inverse_deviation is not None:
            head |= {"mean": transform.mean.cpu(), "inverse_deviation": transform.inverse_deviation.cpu()}

        def write() -> None:
            with writing(folder):
                write_result(folder, result, HEAD, serialised(head))

        on_rank_zero(write)
        return result

    # telling

    def protocol_string(self) -> str:
        """All that a number depends on, in one line."""
        few = f", top-5 is top-{self.num_classes}" if self.num_classes < 5 else ""
        precision = self.config.runtime.precision
        return (
            f"{self.protocol}; {len(self.train[1])} training and {len(self.val[1])} validation images of "
            f"{self.num_classes} classes{few}; crops of {self.image_size} pixels{self.train[0].decoding.told()}, "
            f"{precision}; last state, "
            "nothing chosen on the validation set"
        )

    def description(self, seed: int) -> dict[str, Any]:
        """What an evaluation with a seed is, as saved in its `config.json`."""
        report = self.backbone.report
        return {
            "config": {
                "protocol": self.protocol.model_dump(mode="json"),
                "seed": seed,
                "image_size": self.image_size,
                "precision": self.config.runtime.precision,
                **asdict(self.train[0].decoding),
                "train_images": on_rank_zero(self.train[0].fingerprint),
                "val_images": on_rank_zero(self.val[0].fingerprint),
                "train_labels": hash_of_labels(self.train.labels),
                "val_labels": hash_of_labels(self.val.labels),
                "backbone": f"{report.arch} {report.sha256}",
            },
            "environment": environment(),
        }

    def evaluation(self, results: Sequence[dict[str, Any]]) -> Evaluation:
        """The seeds' results together."""
        report = self.backbone.report
        return Evaluation(
            kind="linear",
            name=self.name,
            protocol=f"{self.protocol_string()}; seeds {' '.join(map(str, self.config.seeds))}",
            checkpoint=str(report.path),
            arch=report.arch,
            values={metric: [result[metric] for result in results] for metric in ("top1", "top5")},
            details={
                "sha256": report.sha256,
                "seeds": list(self.config.seeds),
                "chosen": [{"lr": result["lr"], "weight_decay": result["weight_decay"]} for result in results],
                "mean": {metric: statistics.fmean(result[metric] for result in results) for metric in ("top1", "top5")},
            },
        )

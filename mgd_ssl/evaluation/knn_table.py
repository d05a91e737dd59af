"""k-NN accuracies of a backbone, for every number of neighbours, temperature and share of the labels."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from mgd_ssl.config import Decoding
from mgd_ssl.console import progress_bar
from mgd_ssl.data.images import Unreadable
from mgd_ssl.data.loader import Reading
from mgd_ssl.data.order import few_labels
from mgd_ssl.data.samples import decoding_as_in
from mgd_ssl.data.sources import Labelled, is_there, scan_labelled
from mgd_ssl.data.unreadable import TOLD, added, composited, over_ranks
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.accuracy import Accuracy
from mgd_ssl.evaluation.config import KNNEvaluationConfig
from mgd_ssl.evaluation.features import FeatureExtractor, Features
from mgd_ssl.evaluation.knn import knn_accuracies, protocol
from mgd_ssl.files import check_place
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import trunk
from mgd_ssl.networks.placing import placed
from mgd_ssl.networks.untrained import find_evaluated, load_evaluated, untrained
from mgd_ssl.printable import printable
from mgd_ssl.run.folder import run_image_size, run_of
from mgd_ssl.run.result import Evaluation
from mgd_ssl.run.runtime import Runtime, on_rank_zero, process
from moco.dist import rank, sum_over_ranks, world_size

SHARES = {"": 1.0, "1pct": 0.01, "10pct": 0.1}  # of the labels: the second part of a result's name -> share


@dataclass(frozen=True)
class Row:
    """Accuracies of one k, T and share of the labels."""

    k: int
    temperature: float
    share: str  # key of SHARES
    voting: int  # images that vote
    accuracies: list[Accuracy]  # one a subset

    @property
    def name(self) -> str:
        """`k20_T0.07`, `k20_T0.07_1pct`."""
        return f"k{self.k}_T{self.temperature:g}" + (f"_{self.share}" if self.share else "")


def evaluate(config: KNNEvaluationConfig) -> tuple[list[Evaluation], Path | None]:
    """Evaluate, and save the results when all are there.

    Returns:
        One evaluation for each k, temperature and share of the labels, equal on all ranks, and their folder.

    Raises:
        UserError: when a setting, a file or a folder is at fault; nothing is written.
    """
    checkpoint, data = config.checkpoint, config.data
    for split in ("train", "val"):
        if not is_there(data / split):
            raise UserError(f"{data / split} is not there: --data needs train/<class>/* and val/<class>/* in it")
    with process(config.runtime) as runtime:
        path = on_rank_zero(lambda: find_evaluated(checkpoint))
        run = run_of(path)
        out = config.out or run
        if out is not None:
            check_place(out)  # before hours are spent
        backbone, report = load_evaluated(path, config.arch)
        network = placed(trunk(backbone), runtime.device, runtime.memory_format)
        if config.runtime.compile:
            network.compile(dynamic=False)
        decoding = decoding_as_in(run, config.background, config.max_pixels)
        sets = scan_labelled(data / "train", data / "val", decoding)
        check_ks(config, sets[0].labels)
        image_size = config.image_size or run_image_size(run)
        extract = FeatureExtractor(network, runtime, image_size)
        bank, replaced_in_bank = features(extract, sets[0], config, "voting")
        queries, replaced_in_queries = features(extract, sets[1], config, "classified")
        rows = knn_rows(config, bank, queries, runtime)
        details = {
            "data": str(data), "image_size": image_size, "precision": config.runtime.precision,
            "background": decoding.background, "processes": world_size(), "weights": str(report),
            "sha256": report.sha256,
            "unreadable": {"train": replaced_in_bank, "val": replaced_in_queries},
        }  # fmt: skip
        evaluations = [as_evaluation(row, config, report, len(queries.labels), details) for row in rows]
        if out is not None:
            on_rank_zero(lambda: [str(evaluation.save(out)) for evaluation in evaluations])
        return evaluations, out


def check_ks(config: KNNEvaluationConfig, labels: np.ndarray) -> None:
    """Raise UserError when a k exceeds the bank, or when for a share of the labels all do."""
    if max(config.k) > len(labels):
        raise UserError(f"k is {max(config.k)} but only {len(labels)} images vote: pass smaller numbers to --k")
    for name, share in few_label_shares(config):
        voting = len(few_labels(labels, share, config.seeds[0]))
        if min(config.k) > voting:
            raise UserError(
                f"{percent(name)} of the labels are {voting} images, fewer than the smallest k, {min(config.k)}: "
                "pass smaller numbers to --k, or leave --few-label out"
            )


def few_label_shares(config: KNNEvaluationConfig) -> list[tuple[str, float]]:
    """Name and value of the shares below one that are asked for."""
    return [(name, share) for name, share in SHARES.items() if name and config.few_label]


def percent(share: str) -> str:
    """`1pct` -> `1 %`."""
    return share.replace("pct", " %")


class PassAccount:
    """Of the files of one pass that cannot be read, and of what was composited."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}  # and why
        self.counts = [0, 0]  # images composited, images decoded

    def note(self, unreadable: Sequence[Unreadable]) -> None:
        """Remember them."""
        self.files.update(unreadable)
        self.counts = added(self.counts, unreadable)


def features(
    extract: FeatureExtractor, labelled: Labelled, config: KNNEvaluationConfig, name: str
) -> tuple[Features, dict[str, str]]:
    """Features of one folder, with a progress bar, and what was replaced, and why.

    Raises:
        UserError: when too many images are unreadable.
    """
    account = PassAccount()
    with ExitStack() as stack:
        advance = progress_bar(stack, f"features of {name} images", -(-len(labelled.images) // world_size()))
        workers = extract.runtime.data_workers(config.workers)
        reading = Reading(config.batch_size, workers, account=account, progress=advance)
        found = extract(labelled, np.arange(len(labelled.images)), reading)
    unreadable = over_ranks(account.files)
    if line := composited(labelled.images, sum_over_ranks(torch.tensor(account.counts)).tolist()):
        _tell(line)
    share = len(unreadable) / len(labelled.images)
    root, first = labelled.images.root, ", ".join(list(unreadable)[:TOLD])
    if share > config.max_unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(labelled.images)} images in {root} ({share:.1%}) are unreadable, "
            f"first {first}: mend them, or raise --max-unreadable above {config.max_unreadable:g}"
        )
    if unreadable:
        _tell(f"{len(unreadable)} unreadable images in {root} are replaced by others, first {first}")
    return found, unreadable


def _tell(line: str) -> None:
    if rank() == 0:
        Console(stderr=True).print(printable(line), style="yellow", markup=False, highlight=False, soft_wrap=True)


def knn_rows(config: KNNEvaluationConfig, bank: Features, queries: Features, runtime: Runtime) -> list[Row]:
    """All rows: of the whole bank, then those of few labels."""
    whole = knn_accuracies(bank, queries, config.k, config.temperature, runtime.device)
    rows = [Row(k, t, "", len(bank.labels), [accuracy]) for (k, t), accuracy in whole.items()]
    for name, share in few_label_shares(config):
        subsets = [few_labels(bank.labels, share, seed) for seed in config.seeds]
        voting = len(subsets[0])  # equal for all seeds
        ks = [k for k in config.k if k <= voting]
        if left_out := sorted(set(config.k) - set(ks)):
            told = ", ".join(map(str, left_out))
            _tell(f"with {percent(name)} of the labels k = {told} is left out: only {voting} images vote")
        found = [
            knn_accuracies(
                Features(bank.values[subset], bank.labels[subset]), queries, ks, config.temperature, runtime.device
            )
            for subset in subsets
        ]
        rows += [Row(k, t, name, voting, [accuracies[k, t] for accuracies in found]) for k, t in found[0]]
    return rows


def as_evaluation(
    row: Row, config: KNNEvaluationConfig, report: LoadReport, classified: int, details: dict[str, Any]
) -> Evaluation:
    """A row with all that its numbers depend on."""
    voting, specifics = str(row.voting), {"k": row.k, "temperature": row.temperature, "voting": row.voting}
    if row.share:
        seeds = ", ".join(map(str, config.seeds))
        voting += f" ({percent(row.share)} of each class, one at least, mean over subsets of seeds {seeds})"
        specifics |= {"share_of_labels": SHARES[row.share]}
    line = protocol(row.k, row.temperature, voting, classified, details["image_size"])
    if config.runtime.precision != "float32":
        line += f", {config.runtime.precision}"
    if replaced := sum(len(files) for files in details["unreadable"].values()):
        line += f", {replaced} unreadable images replaced"
    line += Decoding(details["background"]).told()
    return Evaluation(
        kind="knn",
        name=row.name + (chosen.suffix if (chosen := untrained(report.path)) else ""),
        protocol=line,
        checkpoint=str(report.path),
        arch=report.arch,
        values={"top1": [a.top1 for a in row.accuracies], "top5": [a.top5 for a in row.accuracies]},
        details=specifics | ({"seeds": list(config.seeds)} if row.share else {}) | details,
    )

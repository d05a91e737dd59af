"""Measured and published accuracies as one table: never a number without its protocol and its source."""

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from mgd_ssl.classify_settings import ClassifyConfig
from mgd_ssl.config import PretrainConfig
from mgd_ssl.printable import printable
from mgd_ssl.report import published, published_errors
from mgd_ssl.report.classes import validated
from mgd_ssl.run.read import Run
from mgd_ssl.setting_keys import flattened, free_keys

KIND_NAMES = {"linear": "linear evaluation", "knn": "k-NN", "classification": "classification"}


class Mean(NamedTuple):
    """A mean and, over several values, their standard deviation."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")


@dataclass(frozen=True)
class Measurement:
    """What one run's files say about one encoder under one protocol."""

    group: tuple[Any, ...]  # measurements of one group are seeds of the same thing
    model: str
    method: str
    teacher: str
    epochs: int | None  # None: not known
    kind: str  # "linear" or "knn"
    protocol: str
    state: str
    source: str  # file
    run: Run
    values: dict[str, list[float]]  # top1, top5 in percent


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    model: str
    method: str
    teacher: str
    epochs: int | None
    kind: str
    protocol: str
    top1: Mean | None
    top5: Mean | None
    over: str  # what mean and deviation are taken over
    runs: tuple[Run, ...]  # they come from; of a published number, those that follow its recipe
    state: str
    source: str
    is_published: bool = False

    @property
    def run_names(self) -> str:
        """Names of its runs."""
        return ", ".join(run.name for run in self.runs)


# measurements


def measurements(runs: Sequence[Run]) -> list[Measurement]:
    """Everything measured in these runs, baselines first."""
    groups = recipe_groups(runs)
    read = (from_metrics, from_validation, from_evaluations)
    trained = [m for run in runs for from_files in read for m in from_files(run, groups)]
    return [*baselines(runs), *trained]


def recipe_groups(runs: Sequence[Run]) -> dict[str, tuple[Any, ...]]:
    """By a run's name what it shares with the runs that differ from it in nothing but the seed.

    A teacher that is itself one of the runs counts by its recipe: students of several seeds may each have a teacher
    of their own seed. A run that is not finished, or repeats a seed, stands alone.
    """
    by_encoder = {run.encoder_hash: run for run in runs if run.encoder_hash is not None}
    groups: dict[str, tuple[Any, ...]] = {}
    seen: set[tuple[Any, ...]] = set()
    for run in runs:
        key: tuple[Any, ...] = recipe(run, by_encoder)
        repeated = (*key, run.seed) in seen
        seen.add((*key, run.seed))
        groups[run.name] = (*key, "" if run.finished and not repeated else run.name)
    return groups


def recipe(run: Run, by_encoder: dict[str, Run], depth: int = 0) -> tuple[Any, ...]:
    """Settings that decide a result, but the seed."""
    free = (*free_keys(PretrainConfig), *free_keys(ClassifyConfig))
    settings = sorted(
        (key, str(value))
        for key, value in flattened(run.config).items()
        if key != "seed" and not any(key == f or key.startswith(f"{f}.") for f in free)
    )
    teacher: Any = run.teacher and run.teacher["sha256"]
    if teacher in by_encoder and depth < 5:  # a chain of teachers ends; files copied by hand could make a ring
        teacher = recipe(by_encoder[teacher], by_encoder, depth + 1)
    return (*settings, *data_key(run), teacher)


def data_key(run: Run) -> tuple[Any, ...]:
    """Number and names of the images."""
    return run.data["num_images"], run.data["fingerprint"]


def from_metrics(run: Run, groups: dict[str, tuple[Any, ...]]) -> Iterable[Measurement]:
    """The newest k-NN row of a run."""
    for row in run.rows("knn")[-1:]:
        state = run.state if run.finished else f"{run.state}; k-NN at step {row['step']}"
        yield Measurement(
            (groups[run.name], "metrics", row["protocol"]), run.student, run.method, teacher_name(run), run.epochs,
            "knn", row["protocol"], state, "metrics.jsonl", run, top(row),
        )  # fmt: skip


def from_validation(run: Run, groups: dict[str, tuple[Any, ...]]) -> Iterable[Measurement]:
    """Of a classification the last epoch, and the one that was best on the same images."""
    for protocol, state, values in validated(run):
        yield Measurement(
            (groups[run.name], "validation", protocol), run.student, run.method, teacher_name(run), run.epochs,
            "classification", protocol, state, "metrics.jsonl", run, values,
        )  # fmt: skip


def from_evaluations(run: Run, groups: dict[str, tuple[Any, ...]]) -> Iterable[Measurement]:
    """The `evaluation_*.json` of a run; those of another network than its student are named so."""
    for name, evaluation in run.evaluations.items():
        checkpoint = re.split(r"[\\/]", evaluation.checkpoint)[-1]
        own = evaluation.arch == run.student and not evaluation.untrained
        state = run.state if own and checkpoint == "encoder.pt" else f"of {checkpoint}"
        method = run.method if own else "random" if evaluation.untrained else "as loaded"
        epochs = run.epochs if own else 0 if evaluation.untrained else None
        yield Measurement(
            (groups[run.name], name, evaluation.protocol, evaluation.arch, state), evaluation.arch, method,
            teacher_name(run) if own else "", epochs, evaluation.kind, evaluation.protocol, state, name, run,
            evaluation.values,
        )  # fmt: skip


def baselines(runs: Sequence[Run]) -> Iterable[Measurement]:
    """Random encoders and teachers as the runs' k-NN saw them, each once a seed."""
    own = {run.encoder_hash for run in runs}
    seen: set[tuple[Any, ...]] = set()
    for run in runs:
        for row in run.rows("knn")[-1:]:
            where = (row["protocol"], *data_key(run))
            found: list[tuple[Any, ...]] = []
            if "random_top1" in row:
                group: tuple[Any, ...] = ("random", run.student, *where)
                found.append((group, run.student, "random", 0, top(row, "random_"), (group, run.seed)))
            if "teacher_top1" in row and run.teacher is not None and run.teacher["sha256"] not in own:
                group = ("teacher", run.teacher["sha256"], *where)
                found.append((group, run.teacher["arch"], "teacher", None, top(row, "teacher_"), group))
            for group, model, method, epochs, values, once in found:
                if once not in seen:
                    seen.add(once)
                    yield Measurement(
                        group, model, method, "", epochs, "knn", row["protocol"], "", "metrics.jsonl", run, values
                    )


def top(row: dict[str, Any], prefix: str = "") -> dict[str, list[float]]:
    """`top1` and `top5` of a metrics row."""
    return {name: [row[prefix + name]] for name in ("top1", "top5") if prefix + name in row}


def teacher_name(run: Run) -> str:
    """Architecture of a run's teacher, empty without one."""
    return str(run.teacher["arch"]) if run.teacher else ""


# rows


def rows(runs: Sequence[Run]) -> list[Row]:
    """The table, each protocol together: linear evaluations, the published ones, then the rest."""
    groups: dict[tuple[Any, ...], list[Measurement]] = {}
    for measurement in measurements(runs):
        groups.setdefault(measurement.group, []).append(measurement)
    measured = [summary(group) for group in groups.values()]
    protocols = list(dict.fromkeys(row.protocol for row in measured))
    measured.sort(key=lambda row: protocols.index(row.protocol))
    linear = [row for row in measured if row.kind == "linear"]
    return [*linear, *published_rows(runs), *(row for row in measured if row.kind != "linear")]


def summary(group: Sequence[Measurement]) -> Row:
    """Mean and deviation over runs, or over the values of one run's evaluation."""
    first = group[0]
    counts = {len(values) for m in group for values in m.values.values()}
    repeats = f" × {max(counts)} values" if max(counts, default=1) > 1 else ""
    over = f"{len(group)} run{'s' if len(group) > 1 else ''}{repeats}"
    return Row(
        first.model, first.method, first.teacher, first.epochs, first.kind, first.protocol,
        mean_of(group, "top1"), mean_of(group, "top5"), over, tuple(m.run for m in group), first.state, first.source,
    )  # fmt: skip


def mean_of(group: Sequence[Measurement], metric: str) -> Mean | None:
    """Over the runs' means where there are several runs, else over the values of the one."""
    lists = [m.values[metric] for m in group if m.values.get(metric)]
    if not lists:
        return None
    values = [statistics.fmean(values) for values in lists] if len(lists) > 1 else lists[0]
    return Mean(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def published_rows(runs: Sequence[Run]) -> list[Row]:
    """Published numbers of the recipes these runs follow."""
    followers: dict[published.Published | published_errors.PublishedErrors, list[Run]] = {}
    for run in runs:
        if result := published.published_for(run) or published_errors.published_for(run):
            followers.setdefault(result, []).append(run)
    return [
        Row(
            found[0].student, found[0].method, teacher_name(found[0]), found[0].epochs, result.kind, result.protocol,
            Mean(result.top1, None), Mean(result.top5, None), "", tuple(found), result.state,
            result.source, is_published=True,
        )
        for result, found in followers.items()
    ]  # fmt: skip


# other forms


def full_frame(table: Sequence[Row]) -> pd.DataFrame:
    """The table with all digits, for the CSV file."""
    columns = ["model", "method", "teacher", "epochs", "evaluation", "protocol", "top1", "top1_deviation",
               "top5", "top5_deviation", "over", "runs", "state", "origin", "source"]  # fmt: skip
    return pd.DataFrame(
        [
            {
                "model": row.model, "method": row.method, "teacher": row.teacher, "epochs": row.epochs,
                "evaluation": KIND_NAMES.get(row.kind, row.kind), "protocol": row.protocol,
                **numbers("top1", row.top1), **numbers("top5", row.top5),
                "over": row.over, "runs": row.run_names, "state": row.state,
                "origin": "published" if row.is_published else "measured", "source": row.source,
            }
            for row in table
        ],
        columns=columns,
    ).astype({"epochs": "Int64"})  # fmt: skip


def numbers(name: str, mean: Mean | None) -> dict[str, float | None]:
    """Two columns of the CSV file."""
    return {name: mean and mean.mean, f"{name}_deviation": mean and mean.deviation}


def short_frame(table: Sequence[Row]) -> pd.DataFrame:
    """The table in the published one's form, for people."""
    columns = ["model", "method", "teacher", "epochs", "protocol", "top-1 (%)", "top-5 (%)", "over", "runs",
               "state", "source"]  # fmt: skip
    return pd.DataFrame(
        [
            {
                "model": row.model, "method": row.method, "teacher": row.teacher,
                "epochs": "" if row.epochs is None else row.epochs,
                "protocol": row.protocol, "top-1 (%)": text(row.top1), "top-5 (%)": text(row.top5),
                "over": row.over, "runs": row.run_names, "state": row.state,
                "source": f"{'published' if row.is_published else 'measured'}: {row.source}",
            }
            for row in table
        ],
        columns=columns,
    )  # fmt: skip


def text(mean: Mean | None) -> str:
    """As shown in a cell."""
    return "" if mean is None else str(mean)


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "".join(f"| {' | '.join(map(markdown_cell, line))} |\n" for line in lines)


def markdown_cell(value: object) -> str:
    """Text that stays inside its cell."""
    return printable(" ".join(str(value).split())).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


# settings and environment, one column a run

"""What a comparison of runs says, in one sentence, and no more than its seeds allow."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy.stats import t as student_t

from mgd_ssl.classify_settings import ClassifyConfig
from mgd_ssl.config import PretrainConfig
from mgd_ssl.report.tables import KIND_NAMES, Mean, Row, data_key
from mgd_ssl.run.read import Run
from mgd_ssl.setting_keys import flattened, free_keys

MAX_VERDICTS = 4
SHOWN = 48  # characters of runs' names
LEVEL = 0.95  # of the interval of a difference
METHOD = (
    "mgd",
    "kd",
    "taps",
    "teacher_taps",
    "teacher",
    "teacher_arch",
    "seed",
)  # settings in which the two sides of a comparison may differ
NOTHING = (
    "No verdict: that takes a finished run with a teacher beside one without, of the same student, images, epochs and "
    "protocol."
)


class Difference(NamedTuple):
    """With a teacher minus without, in points."""

    points: float
    low: float  # ends of its interval over seeds; not finite where a side has one seed
    high: float


def verdicts(table: Sequence[Row]) -> list[str]:
    """A sentence for each guided row that has an unguided one to be held against, linear evaluations first."""
    rows = [row for row in table if row.state == "finished" and row.top1 is not None and not row.is_published]
    found = []
    for guided in rows:
        if guided.runs[0].teacher is None:
            continue
        plain = max((row for row in rows if comparable(guided, row)), key=lambda row: len(row.runs), default=None)
        if plain is not None:
            found.append(sentence(guided, plain, table))
    if len(found) > MAX_VERDICTS:
        found[MAX_VERDICTS:] = [f"{len(found) - MAX_VERDICTS} more comparisons are in the tables below."]
    return found or [NOTHING]


def comparable(guided: Row, plain: Row) -> bool:
    """Whether two rows are one student on the same images, measured alike, without a teacher in the second."""
    same = all(getattr(guided, key) == getattr(plain, key) for key in ("model", "epochs", "kind", "protocol"))
    return same and plain.runs[0].teacher is None and data_key(guided.runs[0]) == data_key(plain.runs[0])


def sentence(guided: Row, plain: Row, table: Sequence[Row]) -> str:
    """How the two compare, how sure that is, and what else is not the same."""
    assert guided.top1 is not None and plain.top1 is not None
    found = difference(guided.top1, len(guided.runs), plain.top1, len(plain.runs))
    how, taught_by = KIND_NAMES.get(guided.kind, guided.kind), guided.method.partition(" + ")[2]
    words = (
        f"{guided.model} reaches {guided.top1.mean:.1f} % top-1 ({how}) with {taught_by} ({named(guided)}) and "
        f"{plain.top1.mean:.1f} % without ({named(plain)}): {abs(found.points):.1f} points "
        f"{'more' if found.points >= 0 else 'less'}"
    )
    if math.isfinite(found.low):
        inside = found.low <= 0 <= found.high
        words += (
            f", {LEVEL:.0%} interval {found.low:.1f} to {found.high:.1f} over {len(guided.runs)} and "
            f"{len(plain.runs)} seeds, so {'seeds alone may explain it' if inside else 'more than seeds explain'}"
        ).replace("%", " %")
    else:
        words += ", but one seed on a side cannot tell that from chance: repeat both with other seeds"
    for who, reached in lines_of(guided, table):
        words += f"; {who} reaches {reached:.1f} %"
    if others := other_settings(guided.runs[0], plain.runs[0]):
        words += f". They differ in {', '.join(others)} too"
    return f"{words}."


def named(row: Row) -> str:
    """The runs behind a row, by number where their names would hide the sentence."""
    if len(row.run_names) <= SHOWN:
        return row.run_names
    return f"{len(row.runs)} runs" if len(row.runs) > 1 else f"{row.run_names[: SHOWN - 1]}…"


def difference(guided: Mean, guided_runs: int, plain: Mean, plain_runs: int) -> Difference:
    """Welch's interval of the difference of two means over runs."""
    points = guided.mean - plain.mean
    if min(guided_runs, plain_runs) < 2 or guided.deviation is None or plain.deviation is None:
        return Difference(points, -math.inf, math.inf)
    parts = guided.deviation**2 / guided_runs, plain.deviation**2 / plain_runs
    variance = sum(parts)
    if variance == 0:
        return Difference(points, points, points)
    freedom = variance**2 / (parts[0] ** 2 / (guided_runs - 1) + parts[1] ** 2 / (plain_runs - 1))
    half = float(student_t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Difference(points, points - half, points + half)


def lines_of(guided: Row, table: Sequence[Row]) -> list[tuple[str, float]]:
    """A random encoder's and the teacher's top-1 under the same protocol, on the same images."""
    run = guided.runs[0]
    teacher = run.teacher or {"arch": "", "sha256": ""}
    found = {}
    for row in table:
        if row.top1 is None or (row.kind, row.protocol) != (guided.kind, guided.protocol):
            continue
        if data_key(row.runs[0]) != data_key(run):
            continue
        if row.method == "random" and row.model == guided.model:
            found["a random encoder"] = row.top1.mean
        file = row.method == "teacher" and row.model == teacher["arch"]
        if file or (row.state == "finished" and any(one.encoder_hash == teacher["sha256"] for one in row.runs)):
            found["the teacher"] = row.top1.mean
    return list(found.items())


def other_settings(guided: Run, plain: Run) -> list[str]:
    """Settings that decide a result, are not the method's and are not the same."""

    def deciding(run: Run) -> dict[str, Any]:
        free = (*free_keys(PretrainConfig), *free_keys(ClassifyConfig), *METHOD)
        flat = flattened(run.config)
        return {k: v for k, v in flat.items() if not any(k == f or k.startswith(f"{f}.") for f in free)}

    one, other = deciding(guided), deciding(plain)
    return [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]

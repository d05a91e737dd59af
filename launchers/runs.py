"""`mgd-ssl runs RUN...`: a table of runs and their jobs."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field
from rich.console import Console
from rich.table import Table

from launchers.records import Records
from launchers.slurm_queue import UNKNOWN, State, states
from mgd_ssl.command_line import parse
from mgd_ssl.errors import INTERRUPTED, UserError
from mgd_ssl.printable import printable
from mgd_ssl.run import read as runs
from mgd_ssl.run.lock import JOBS, in_use
from mgd_ssl.run.metrics import read_metrics
from mgd_ssl.settings import Settings

NO_NEWS = re.compile("submitit INFO|srun: launch/|srun: error: .* Exited with exit code")  # after the line that counts
TAIL = 65536  # bytes of a log in which its last line is looked for


class RunsConfig(Settings):
    """A table of runs and their jobs: mgd-ssl runs RUN... ; a folder of runs stands for the runs in it."""

    json_lines: bool = Field(False)
    """Print one JSON object a run instead of the table."""


MEASURED = (
    ("average_precision", "AP", "AP"), ("validation", "top1", "top-1"), ("knn", "top1", "k-NN top-1"),
)  # fmt: skip  # kind of a row, the number in it that counts, its name; a task writes one of these kinds


TRAININGS = ("pretrain", "classify", "detect")  # commands whose job is the run itself; others evaluate it


class Row(NamedTuple):
    """One run as the table shows it; None where there is nothing yet."""

    run: str
    state: str
    epoch: float | None
    loss: float | None
    measured: str  # what the value is, as `MEASURED` has it
    value: float | None  # percent, of the newest evaluation
    images_per_second: float | None
    restarts: int
    last_line: str


def main(argv: Sequence[str]) -> int:
    """Print the table."""
    folders = [Path(word) for word in argv if not word.startswith("-")]
    config = parse(RunsConfig, [word for word in argv if word.startswith("-")], "mgd-ssl runs")
    if not folders:
        raise UserError("no run is named: mgd-ssl runs RUN..., or the folder that runs lie in")
    rows = read_rows(runs.runs_in(folders, is_run))
    if config.json_lines:
        for row in rows:
            print(json.dumps(row._asdict()))
    else:
        show(rows)
    return 0


def is_run(folder: Path) -> bool:
    """Whether a run was started or submitted in a folder."""
    return runs.is_run(folder) or any((folder / JOBS).glob("*/submission.json"))


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """A row a run; Slurm is asked once for all of them."""
    newest: list[dict[str, Records]] = []
    damaged: dict[int, str] = {}
    for i, run in enumerate(folders):
        try:
            newest.append(newest_of_each_command(run))
        except UserError as error:
            newest.append({})
            damaged[i] = str(error)
    ids = [records.submission().job_id for by_command in newest for records in by_command.values()]
    try:
        known = states([job_id for job_id in ids if job_id])
    except UserError as error:  # a copy of the runs can be looked at anywhere
        print(f"mgd-ssl: {printable(error)} (states are those the runs recorded)", file=sys.stderr)
        known = {}
    rows = []
    for i, (run, name) in enumerate(zip(folders, runs.short_names(folders), strict=True)):
        try:
            if i in damaged:
                raise UserError(damaged[i])
            rows.append(row(run, name, newest[i], known))
        except UserError as error:  # the others can be told of all the same
            rows.append(Row(name, "damaged", None, None, "", None, None, 0, str(error)))
    return rows


def newest_of_each_command(run: Path) -> dict[str, Records]:
    """The newest submission of every command, as far as there are any."""
    return {records.submission().command[0]: records for records in Records.of_run(run)}


def row(run: Path, name: str, newest: Mapping[str, Records], known: Mapping[str, State]) -> Row:
    """What a run's folder and its newest jobs tell."""
    if (run / "config.json").is_file():
        runs.read_of_run(run / "config.json")
    metrics = last_rows(run / "metrics.jsonl")
    train, (measured, value) = metrics.get("train", {}), newest_measurement(metrics)
    by_command = {word: known.get(records.submission().job_id, UNKNOWN) for word, records in newest.items()}
    training = next((word for word in TRAININGS if word in newest), TRAININGS[0])
    records = newest.get(training)
    state = state_of(run, records, by_command.pop(training, UNKNOWN))
    evaluations = {word: alive(now) if now.alive else ended(newest[word], now) for word, now in by_command.items()}
    told = [f"{word} {now}" for word, now in evaluations.items() if now != "finished"]
    if records is not None or (run / "config.json").is_file():
        told.insert(0, state)
    logs = [Path(log) for one in newest.values() for log in reversed(one.submission().logs)]
    return Row(
        name,
        "; ".join(told) or "finished",
        train.get("epoch"),
        train.get("loss"),
        measured,
        value,
        train.get("images_per_second"),
        max(0, len(records.attempts()) - 1) if records is not None else 0,
        last_line([run / "log.txt", *logs]),
    )


def newest_measurement(rows: Mapping[str, Mapping[str, Any]]) -> tuple[str, float | None]:
    """Name and value of the number that counts for a run's task; nothing before its first evaluation."""
    for kind, number, name in MEASURED:
        if kind in rows:
            return name, rows[kind].get(number)
    return "", None


def alive(state: State) -> str:
    """`running`, `pending (Priority)`."""
    return state.name.lower() + (f" ({state.reason})" if state.reason and state.name == "PENDING" else "")


def state_of(run: Path, records: Records | None, state: State) -> str:
    """`running`, `pending (Priority)`, `finished`, `failed, code 3`, `stopped` (saved), `cancelled`, `killed`, ..."""
    if state.alive:
        return alive(state)
    if in_use(run):
        return "running"
    if runs.is_finished(run):
        return "finished"
    return "stopped" if records is None else ended(records, state)


def ended(records: Records, state: State) -> str:
    """What became of a job that is over."""
    end, failures = records.end(), records.failures()
    if failures:
        return f"failed, code {failures[0].code}"
    if state is not UNKNOWN and state.name not in ("COMPLETED", "FAILED"):
        return state.name.lower().replace("_", " ")
    if end is None:
        return "killed" if records.attempts() else "did not start"
    return {0: "finished", INTERRUPTED: "stopped"}.get(end.code, f"failed, code {end.code}")


def last_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The newest row of each kind in metrics.jsonl; a last line that is being written is left out.

    Raises:
        UserError: when another line is damaged.
    """
    return {content["kind"]: content for content in read_metrics(path)}


def last_line(logs: Sequence[Path]) -> str:
    """The last line of the log that was written last."""
    there = [log for log in logs if log.is_file() and log.stat().st_size]
    if not there:
        return ""
    newest = max(there, key=lambda log: log.stat().st_mtime)
    with newest.open("rb") as file:
        file.seek(max(0, newest.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    lines = [line for line in lines if line.strip() and not NO_NEWS.match(line)]
    return lines[-1] if lines else ""


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table(box=None)
    for column, justify in (
        ("run", "left"), ("state", "left"), ("epoch", "right"), ("loss", "right"), ("measured", "left"),
        ("%", "right"), ("images/s", "right"), ("restarts", "right"),
    ):  # fmt: skip
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("last line", overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(
            printable(row.run), printable(row.state), _number(row.epoch, 2), _number(row.loss, 4),
            row.measured, _number(row.value, 2), _number(row.images_per_second, 0), str(row.restarts),
            printable(row.last_line),
        )  # fmt: skip
    console = Console(file=sys.stdout)
    if not console.is_terminal:  # a pipe gets whole lines
        console.width = 10_000
    console.print(table, highlight=False, markup=False)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"

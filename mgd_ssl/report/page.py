"""The page: everything about some runs in one HTML file that needs nothing else."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mgd_ssl.errors import UserError
from mgd_ssl.files import ELSEWHERE, check_place, write_whole, writing
from mgd_ssl.printable import cell, printable
from mgd_ssl.report import published
from mgd_ssl.report.channels import StageReport, stage_reports
from mgd_ssl.report.classes import class_reports, validation_picture
from mgd_ssl.report.figures import Picture, curves
from mgd_ssl.report.matching_figures import matching_pictures
from mgd_ssl.report.pictures import Folders, embedding_pictures, view_pictures
from mgd_ssl.report.side_by_side import differing, side_by_side
from mgd_ssl.report.sizes import savings, size_rows
from mgd_ssl.report.tables import KIND_NAMES, Row, full_frame, markdown, rows, short_frame
from mgd_ssl.report.verdict import verdicts
from mgd_ssl.run.environment import environment
from mgd_ssl.run.read import Run, read_runs

TEMPLATE = "page.html"


@dataclass(frozen=True)
class Table:
    """Rows of one protocol, or published ones."""

    title: str
    caption: str
    rows: list[Row]


@dataclass(frozen=True)
class Section:
    """Pictures, and notes on those that are missing."""

    pictures: list[Picture]
    notes: list[str]


@dataclass(frozen=True)
class Matching:
    """All about the matching of one run."""

    name: str
    pictures: list[Picture]
    stages: list[StageReport]
    notes: list[str] = field(default_factory=list)


def render(runs: Sequence[Run], table: Sequence[Row]) -> str:
    """The report as HTML."""
    folders = Folders()
    pretrained = [run for run in runs if run.task == "pretraining"]
    class_notes: list[str] = []
    differences = differing([without_out(run.config) for run in runs])
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return templates.get_template(TEMPLATE).render(
        title="mgd_ssl report: " + ", ".join(run.name for run in runs),
        heading=", ".join(run.name for run in runs) if len(runs) < 5 else f"{len(runs)} runs",
        runs=runs,
        verdicts=verdicts(table),
        sizes=size_rows(runs),
        savings=savings(runs),
        tables=tables_by_protocol(table),
        published_notes=published.notes(runs),
        curves=[*validation_picture(runs), *curves(runs)],
        classes=class_reports(runs, class_notes),
        class_notes=class_notes,
        matchings=[matching(run) for run in runs if run.teacher is not None and run.rows("matching")],
        views=section(view_pictures, pretrained, folders),
        embeddings=section(embedding_pictures, pretrained, folders),
        differences=differences,
        environments=environment_rows(runs),
        configs=[(run.name, json.dumps(run.config, indent=2)) for run in runs],
        made_with=environment(),
    )


def without_out(config: dict[str, Any]) -> dict[str, Any]:
    """Settings without the folder, which always differs."""
    return {key: value for key, value in config.items() if key != "out"}


def tables_by_protocol(table: Sequence[Row]) -> list[Table]:
    """One table a protocol, the published one apart."""
    groups: dict[tuple[bool, str, str], list[Row]] = {}
    for row in table:
        groups.setdefault((row.is_published, row.kind, row.protocol), []).append(row)
    return [
        Table(
            f"Published for the same recipe, as far as it is known: {KIND_NAMES.get(kind, kind)}"
            if is_published
            else f"Measured: {KIND_NAMES.get(kind, kind)}",
            protocol,
            rows,
        )
        for (is_published, kind, protocol), rows in groups.items()
    ]


def section(
    draw: Callable[[Sequence[Run], Folders, list[str]], list[Picture]], runs: Sequence[Run], folders: Folders
) -> Section:
    """What `draw` draws, and what it says is missing."""
    notes: list[str] = []
    return Section(draw(runs, folders, notes), notes)


def matching(run: Run) -> Matching:
    """The matching of a guided run."""
    notes: list[str] = []
    stages = stage_reports(run, notes)
    return Matching(run.name, matching_pictures(run), stages, notes)


def environment_rows(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """`(key, value of every run, whether they differ)` of versions, machine, images and teacher."""
    columns = [
        {
            **run.environment,
            "images": run.data["num_images"],
            "images' names (hash)": run.data["fingerprint"][:12],
            "teacher": run.teacher and run.teacher["arch"],
            "teacher file (sha256)": run.teacher and run.teacher["sha256"][:12],
        }
        for run in runs
    ]
    return [(key, values, len(set(values)) > 1) for key, values in side_by_side(columns)]


def write_report(folders: Sequence[Path], out: Path) -> list[Path]:
    """Report on the runs in these folders; returns the page and the two files with its table.

    Raises:
        UserError: when a folder holds no run or is damaged, or `out` cannot be; then nothing is written.
        DiskError: when the disk does not take the files.
    """
    check_writable(out)
    runs = read_runs(folders, lambda words: print(f"mgd-ssl: {printable(words)}", file=sys.stderr))
    table = rows(runs)
    contents = {
        out.with_name(f"{out.stem}_table.md"): markdown(short_frame(table)),
        out.with_name(f"{out.stem}_table.csv"): full_frame(table).map(cell).to_csv(index=False),
        out: render(runs, table),
    }
    with writing(out, ELSEWHERE, at_start=True):
        out.parent.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            write_whole(path, content.encode())
    return list(reversed(contents))


def check_writable(out: Path) -> None:
    """Raise UserError where it is plain that `out` cannot be written, before the work is done."""
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"--out is {out}: give a file name that ends in .html")
    if os.path.isdir(out):  # not Path.is_dir, which raises for some names
        raise UserError(f"{out} is a folder: choose another --out")
    if not os.path.exists(out):
        check_place(out)

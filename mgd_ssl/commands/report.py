"""`mgd-ssl report RUN...`: runs side by side in one HTML file, and their table as Markdown and CSV."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mgd_ssl.config import Settings, parse
from mgd_ssl.errors import UserError
from mgd_ssl.files import ELSEWHERE, check_place, write_whole, writing
from mgd_ssl.printable import cell, printable
from mgd_ssl.report.page import render
from mgd_ssl.report.tables import full_frame, markdown, rows, short_frame
from mgd_ssl.run.read import read_runs


class ReportConfig(Settings):
    """Put runs side by side: accuracies, curves, matching, views and settings in one HTML file.

    The file needs no network. The table also goes to <out>_table.md and <out>_table.csv beside it.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")] = ()
    """Folders of runs, finished or not (what was --out of `mgd-ssl pretrain`), or the folders that runs lie in."""
    out: Path = Path("report.html")
    """File to write."""


def main(argv: Sequence[str]) -> int:
    """Write the report and say where it lies."""
    config = parse(ReportConfig, argv, "mgd-ssl report")
    if not config.runs:
        raise UserError("no run is given: pass the folders of one or more runs, as in mgd-ssl report runs/r18")
    for path in write_report(config.runs, config.out):
        print(printable(path))
    return 0


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

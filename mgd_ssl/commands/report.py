"""`mgd-ssl report RUN...`: runs side by side in one HTML file, and their table as Markdown and CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mgd_ssl.command_line import parse
from mgd_ssl.errors import UserError
from mgd_ssl.printable import printable
from mgd_ssl.settings import Settings


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
    from mgd_ssl.report.page import write_report  # pictures are drawn once the settings are known to be right

    for path in write_report(config.runs, config.out):
        print(printable(path))
    return 0

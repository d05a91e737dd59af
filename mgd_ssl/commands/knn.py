"""`mgd-ssl knn`: weighted k-NN accuracy of a trained backbone on a labelled folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mgd_ssl.command_line import parse
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.config import KNNEvaluationConfig
from mgd_ssl.printable import printable

if TYPE_CHECKING:
    from mgd_ssl.run.result import Evaluation


def main(argv: Sequence[str]) -> int:
    """Print the table, and where the results are."""
    config = parse(KNNEvaluationConfig, argv, "mgd-ssl knn")
    from mgd_ssl.evaluation.knn_table import evaluate  # torch is loaded once the settings are known to be right

    evaluations, out = evaluate(config)
    if os.environ.get("RANK", "0") == "0":
        show(evaluations)
        print(
            f"results: {printable(out / 'evaluation_knn_*.json')}" if out else "pass --out FOLDER to keep these results"
        )
    return 0


def check(argv: Sequence[str]) -> Path:
    """Where the results will be, when the settings are valid.

    Raises:
        UserError: when they are not, or the results would only be printed.
    """
    config = parse(KNNEvaluationConfig, argv, "mgd-ssl knn")
    from mgd_ssl.networks.untrained import untrained  # torch is loaded once the settings are known to be right
    from mgd_ssl.run.folder import run_of

    checkpoint = config.checkpoint
    untrained(checkpoint)  # `random:` names an encoder
    out = config.out or (checkpoint if checkpoint.is_dir() else run_of(checkpoint))
    if out is None:
        raise UserError(f"{checkpoint} lies in no run's folder: pass --out, the folder of the results")
    return out


def show(evaluations: "list[Evaluation]") -> None:
    """A table with a row an evaluation."""
    first = evaluations[0]
    what = f"{first.arch}, untrained" if first.untrained else first.arch
    table = Table(title=Text(printable(f"k-NN of {first.checkpoint} ({what})")), title_justify="left")
    for column in ("k", "T", "labels", "top-1", "top-5"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("protocol")
    for evaluation in evaluations:
        details = evaluation.details
        share = f"{100 * details.get('share_of_labels', 1):g} %"
        table.add_row(
            str(details["k"]), f"{details['temperature']:g}", share,
            *(_shown(evaluation, metric) for metric in ("top1", "top5")), evaluation.protocol,
        )  # fmt: skip
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width: one line a row
        console.width = 10_000
    console.print(table, highlight=False)


def _shown(evaluation: "Evaluation", metric: str) -> str:
    deviation = evaluation.deviation(metric)
    return f"{evaluation.mean(metric):.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")

"""`mgd-ssl detect`: settings from the command line, then a detector; or with --evaluate the evaluation of one."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mgd_ssl.command_line import parse
from mgd_ssl.printable import printable
from mgd_ssl.tasks.detection.config import DetectConfig, DetectEvaluationConfig


def main(argv: Sequence[str]) -> int:
    """Train or evaluate, and say how well it detects and where it is."""
    if evaluates(argv):
        return evaluate(argv)
    config = parse(DetectConfig, argv, "mgd-ssl detect")
    from mgd_ssl.tasks.detection.detect import detect  # torch is loaded once the settings are known to be right

    result = detect(config)
    if os.environ.get("RANK", "0") == "0":
        print(", ".join(f"{name} {_shown(value)}" for name, value in result.average_precision.items()))
        print(f"finished: {printable(result.encoder)}")
    return 0


def evaluates(argv: Sequence[str]) -> bool:
    """Whether a run is to be evaluated, and none to be trained."""
    return any(word == "--evaluate" or word.startswith("--evaluate=") for word in argv)


def evaluate(argv: Sequence[str]) -> int:
    """Print the numbers, and write them and the page."""
    config = parse(DetectEvaluationConfig, argv, "mgd-ssl detect")
    from mgd_ssl.report.detection import write_page
    from mgd_ssl.tasks.detection.evaluate import evaluate_run

    evaluated = evaluate_run(config)
    if os.environ.get("RANK", "0") == "0":
        found = evaluated.average_precision
        print(evaluated.evaluation.protocol)
        print(", ".join(f"{name} {_shown(value)}" for name, value in found.numbers.items()))
        show(found.classes)
        print(f"report: {printable(write_page(evaluated, config.shown))}")
    return 0


def show(classes: Mapping[str, Mapping[str, float | None]]) -> None:
    """A table with a row a class."""
    table = Table(box=None)
    for column in ("class", "AP", "AP50", "AP75"):
        table.add_column(column, justify="left" if column == "class" else "right", no_wrap=True)
    for name, row in classes.items():
        table.add_row(printable(name), *(_shown(row[column]) for column in ("AP", "AP50", "AP75")))
    Console().print(table, highlight=False, markup=False)


def check(argv: Sequence[str]) -> Path:
    """The folder that is written to, when the settings are valid and it holds no run with others.

    Raises:
        UserError: when they are not.
    """
    if evaluates(argv):
        asked = parse(DetectEvaluationConfig, argv, "mgd-ssl detect")
        return asked.out or asked.evaluate
    config = parse(DetectConfig, argv, "mgd-ssl detect")
    from mgd_ssl.tasks.detection.detect import SAME

    SAME.check_settings(config, config.out)
    return config.out


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"

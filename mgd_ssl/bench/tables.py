"""How what was measured is shown: a table, and the same as JSON on the last line."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from mgd_ssl.bench.config import StepConfig


def show(table: Table, result: object, width: int | None = None) -> None:
    """Print a table, and what is in it as JSON."""
    Console(width=width).print(table)
    print(json.dumps(result))


def value_table(title: str, result: Mapping[str, object]) -> Table:
    """A line for every number."""
    table = Table(title=title, min_width=len(title))
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in result.items():
        table.add_row(name.replace("_", " "), brief(value))
    return table


def step_table(config: StepConfig, result: Mapping[str, object]) -> Table:
    """Numbers of a training step."""
    sizes = f"{config.image_size} px, batch {config.batch_size}"
    return value_table(f"{config.teacher} -> {config.student}, {sizes}", result)


def brief(value: object) -> str:
    """A number in four figures, or all before the point."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


def stage_table(image_size: int, stages: Mapping[str, Mapping[str, Any]], slow: str = "reference") -> Table:
    """What stages of the views cost a core, the slow way and the fast one.

    Args:
        image_size: edge of a view in pixels.
        stages: the fields of every stage's `Cost`.
        slow: name of the way that is not ours, or not the fast one.
    """
    title = f"both views of an image of 500 x 375, {image_size} px, on one core"
    table = Table(title=title, caption="us of CPU time; the ratio is the median of the rounds', and its spread")
    for column in ("stage", f"{slow} us", "fast us", "ratio", "fast images/s"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, cost in stages.items():
        ratio = f"{cost['ratio']} ({cost['spread']})"
        table.add_row(name, str(cost["reference"]), str(cost["fast"]), ratio, f"{1e6 / cost['fast']:.0f}")
    return table

"""Pictures of the matching: costs over epochs, and channels that changed."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mgd_ssl.report.figures import COLOURS, Picture, drawn, epoch_limits, last_epoch, legend, look, picture
from mgd_ssl.run.read import Run


def matching_pictures(run: Run) -> list[Picture]:
    """Costs before and after every update, and the share of channels that moved; empty without updates."""
    rows = run.rows("matching")
    if not rows:
        return []
    with drawn() as figure:
        axes = figure.subplots()
        over = "update" if len(rows) > 1 else "stage"
        draw_matching(run, axes) if over == "update" else draw_only_matching(rows[0], axes)
        axes.set_title("Cost of a matched pair")
        legend(figure, axes)
        costs = picture(
            figure,
            "Mean cost of a matched pair at every matching update, a line a stage"
            if over == "update"
            else "Mean cost of a matched pair at the only matching update, by stage",
            "Squared distance of L2-normalised maps, from 0 to 4, mean over matched pairs and images"
            + ("; × by the old assignment, ● by the new one" if over == "update" else ", at the only matching update"),
        )
    return [costs] if len(rows) < 2 else [costs, moved_picture(run, rows[1:])]


def draw_only_matching(row: dict[str, Any], axes: Axes) -> None:
    """Mean cost of a matched pair by stage, where there is nothing to draw over epochs yet."""
    numbers = stages([row])
    bars = axes.bar(
        [str(n) for n in numbers], [number(row, f"stage{n}_cost_after") for n in numbers], color=COLOURS[0], width=0.5
    )
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set(xlabel="stage", ylabel="mean cost of a matched pair")


def moved_picture(run: Run, rows: Sequence[dict[str, Any]]) -> Picture:
    """Share of channels reassigned at every update but the first."""
    with drawn() as figure:
        axes = figure.subplots()
        for i, stage in enumerate(stages(rows)):
            y = [100 * number(row, f"stage{stage}_changed") for row in rows]
            axes.plot([row["epoch"] for row in rows], y, marker="o", markersize=4, label=f"stage {stage}", **look(i))
        axes.set(xlabel="epochs", ylabel="channels reassigned (%)", title="Share of channels reassigned")
        axes.set(xlim=epoch_limits(last_epoch([run])))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, axes)
        return picture(
            figure,
            "Share of teacher channels that went to another student channel at every update, a line a stage",
            "Teacher channels that went to another student channel, at every update but the first",
        )


def draw_matching(run: Run, axes: Axes) -> None:
    """Mean cost of a matched pair by stage: the old assignment before each update, the new one after it."""
    rows = run.rows("matching")
    for i, stage in enumerate(stages(rows)):
        epochs = [row["epoch"] for row in rows]
        colour = look(i)["color"]
        after = [number(row, f"stage{stage}_cost_after") for row in rows]
        before = [number(row, f"stage{stage}_cost_before") for row in rows]
        axes.plot(epochs, after, marker="o", markersize=4, color=colour, label=f"stage {stage}")
        axes.plot(epochs, before, "x", markersize=5, color=colour)
    axes.set(xlabel="epochs", ylabel="mean cost of a matched pair", xlim=epoch_limits(last_epoch([run])))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def number(row: dict[str, Any], key: str) -> float:
    """A number of a row, not a number where the row has none."""
    value = row.get(key)
    return math.nan if value is None else value


def stages(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Numbers of the stages these matching rows tell of."""
    return [stage for stage in range(1, 100) if f"stage{stage}_cost_after" in rows[0]]

"""Curves of runs, and pictures as data that a page can carry inside itself."""

import base64
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from mgd_ssl.run.read import TERM_TITLES, Run

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is left out, too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4D4D4D")
GREYS = ("#333333", "#8a8a8a", "#b5b5b5")  # of teachers and random encoders, one a network
LINES = ("-", "--", "-.", ":")
HANDLE, COLUMN_GAP = 2.8, 1.6  # of a legend: width of line and gap before a name, and between columns, in font sizes
MAX_COLUMNS = 4
POINTS = 400  # of a curve at most; longer ones are averaged
SIZE = (4.9, 3.3)  # inches
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "mgd_ssl",  # the same figure is the same file
}

Curve = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Picture:
    """A picture of the page."""

    source: str  # data URI
    alt: str
    caption: str = ""


@contextmanager
def drawn(size: tuple[float, float] = SIZE) -> Iterator[Figure]:
    """A figure in the report's style; closed to nothing global."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # run names may hold any script
        yield Figure(figsize=size, layout="constrained")


def picture(figure: Figure, alt: str, caption: str = "", *, pixels: bool = False) -> Picture:
    """A figure as a data URI: SVG, or PNG for what consists of pixels. Call it inside `drawn`."""
    content = io.BytesIO()
    if pixels:
        figure.savefig(content, format="png", dpi=170)
    else:
        figure.savefig(content, format="svg", metadata={"Date": None})
    kind = "png" if pixels else "svg+xml"
    return Picture(f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}", alt, caption)


def label(name: str, length: int = 44) -> str:
    """A name as matplotlib may show it: no formulas, not hidden for its underscore, not too long."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    if len(name) > length:
        name = f"{name[: length // 2]}…{name[-length // 2 + 1 :]}"
    return f"{' ' if name.startswith('_') else ''}{name}".replace("$", r"\$")


def look(index: int) -> dict[str, Any]:
    """Colour and line style of the run at an index, the same in all figures."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)]}


def thinned(x: Sequence[float], y: Sequence[float]) -> Curve:
    """At most `POINTS` points, each the mean over its part of the curve."""
    if len(x) <= POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), POINTS)
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    return [float(xs[part].mean()) for part in parts], [float(ys[part].mean()) for part in parts]


def last_epoch(runs: Sequence[Run]) -> float:
    """Where the axis of epochs ends: the same for all pictures of a report, so that a single point has its place."""
    return max([1e-9, *(x for run in runs for x in epochs_of(run, run.metrics))])


def epochs_of(run: Run, rows: Sequence[dict[str, Any]]) -> list[float]:
    """Where these rows stand on the axis of epochs."""
    return [row["step"] / run.steps_per_epoch for row in rows]


# curves


class Curves(NamedTuple):
    """One quantity of the train rows over epochs."""

    title: str
    unit: str
    caption: str
    value: Callable[[Run, dict[str, Any]], float | None]  # None where a run does not have it
    log_scale: bool = False


ACCURACY = {  # of training, by the task
    "pretraining": ("Queries nearest to their own key", "Queries nearer to their own key than to the queue"),
    "classification": ("Training accuracy", "Random crops classified rightly, in the step's mode"),
}
SHOWN = ("epoch", "step", "loss", "accuracy", "lr", "images_per_second", "data_wait")  # numbers that are no loss terms
TERM_NAMES = {
    "contrastive": "Contrastive term",
    "mgd": "Distillation term",
    "cross_entropy": "Cross entropy",
    "kd": "Distillation of logits",
    **TERM_TITLES,
}


def curves(runs: Sequence[Run]) -> list[Picture]:
    """All curves of training, those of all runs in one pair of axes."""
    found = [knn_picture(runs, protocol) for protocol in protocols(runs)]
    terms = loss_terms(runs)
    guided = len(terms) > 1
    caption = f"What is optimised: the sum of {', '.join(terms)}" if guided else "What is optimised"
    plots = [
        Curves("Loss", "loss", caption, lambda run, row: row["loss"], guided),
        *(term_curves(name) for name in terms),
        *(accuracy_curves(task) for task in ACCURACY),
        Curves("Learning rate", "learning rate", "", lambda run, row: row["lr"]),
        Curves("Speed", "images/s", "Pauses for k-NN, matching and checkpoints left out",
               lambda run, row: row["images_per_second"]),
        Curves("Waiting for data", "share of time (%)", "Share of the time that steps wait for their images",
               lambda run, row: 100 * row["data_wait"]),
    ]  # fmt: skip
    end = last_epoch(runs)
    return found + [picture for plot in plots if (picture := train_picture(runs, plot, end)) is not None]


def loss_terms(runs: Sequence[Run]) -> list[str]:
    """Names of the losses that any run sums up, in the order of its rows."""
    rows = [row for run in runs for row in run.rows("train")]
    names = {name: None for row in rows for name, value in row.items() if isinstance(value, float | int)}
    return [name for name in names if name not in SHOWN]


def accuracy_curves(task: str) -> Curves:
    """Of the runs of one task."""
    title, caption = ACCURACY[task]
    return Curves(
        title,
        "share (%)",
        caption,
        lambda run, row: 100 * row["accuracy"] if run.task == task and "accuracy" in row else None,
    )


def term_curves(name: str) -> Curves:
    """Of one loss."""
    title = TERM_NAMES.get(name, f"Term {name}")
    contrastive = name == "contrastive"
    unit, caption = ("InfoNCE", "") if contrastive else (name, "As it enters the loss")
    return Curves(title, unit, caption, lambda run, row: row.get(name), not contrastive)


def train_picture(runs: Sequence[Run], plot: Curves, end: float) -> Picture | None:
    """Curves over epochs up to `end`, None where no run has any."""
    drawable = []
    for i, run in enumerate(runs):  # the index is that of the run's colour in the whole report
        pairs = [(row, plot.value(run, row)) for row in run.rows("train")]
        points = [(row, value) for row, value in pairs if value is not None]
        if points:
            x, y = thinned(epochs_of(run, [row for row, _ in points]), [value for _, value in points])
            drawable.append((i, run, x, y))
    if not drawable:
        return None
    with drawn() as figure:
        axes = figure.subplots()
        for i, run, x, y in drawable:
            axes.plot(x, y, label=label(run.name), **look(i), **dots(x))
        axes.set(xlabel="epochs", ylabel=plot.unit, title=plot.title, xlim=epoch_limits(end))
        if plot.log_scale and any(v > 0 for _, _, _, y in drawable for v in y):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        legend(figure, axes)
        return picture(figure, f"{plot.title} ({plot.unit}) over epochs, a line a run", plot.caption)


def dots(x: Sequence[float]) -> dict[str, Any]:
    """Markers for curves of few points."""
    return {"marker": "o", "markersize": 3} if len(x) < 25 else {}


def epoch_limits(end: float) -> tuple[float, float]:
    """From the start to `end`, with room for the points there."""
    return -0.02 * end, 1.02 * end


def legend(figure: Figure, axes: Axes, **style: Any) -> None:
    """Below the axes, where it hides nothing: in as many columns as fit, the figure higher by its lines.

    Names that are wider than the figure are shortened.
    """
    handles, names = axes.get_legend_handles_labels()
    if not handles:
        return
    size = STYLE["legend.fontsize"]
    room = 72 * figure.get_figwidth() - 3 * size  # points
    while len(max(names, key=len)) > 8 and text_width(names, size) + HANDLE * size > room:
        names = [label(name.replace(r"\$", "$"), max(8, len(max(names, key=len)) - 2)) for name in names]
    column = text_width(names, size) + (HANDLE + COLUMN_GAP) * size
    columns = min(len(names), MAX_COLUMNS, max(1, int((room + COLUMN_GAP * size) // column)))
    lines = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + (lines - 1) * 1.5 * size / 72)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, columnspacing=COLUMN_GAP, **style)


def text_width(names: Sequence[str], size: float) -> float:
    """Of the widest of these names, in points."""
    font = FontProperties(size=size)
    return max(TextPath((0, 0), name or " ", prop=font).get_extents().width for name in names)


def protocols(runs: Sequence[Run]) -> list[str]:
    """The k-NN protocols of these runs."""
    return list(dict.fromkeys(row["protocol"] for run in runs for row in run.rows("knn")))


def knn_picture(runs: Sequence[Run], protocol: str) -> Picture:
    """k-NN top-1 under one protocol, between the teachers' and the random encoders' lines."""
    with drawn() as figure:
        axes = figure.subplots()
        draw_knn(runs, protocol, axes)
        axes.set_title("k-NN of frozen features")
        legend(figure, axes)
        return picture(figure, "k-NN top-1 accuracy over epochs with the lines of teacher and random encoder", protocol)


def draw_knn(runs: Sequence[Run], protocol: str, axes: Axes) -> None:
    """k-NN top-1 over epochs; dashed the teachers, dotted the random encoders."""
    shown: list[float] = []
    for i, run in enumerate(runs):
        rows = [row for row in run.rows("knn") if row["protocol"] == protocol]
        top1 = [row["top1"] for row in rows]
        if rows:
            x = epochs_of(run, rows)
            axes.plot(x, top1, label=label(run.name), marker="o", markersize=3.5, **look(i))
            shown += top1
            if len(rows) == 1:  # no line leads the eye to it
                axes.annotate(f"{top1[0]:.1f}", (x[0], top1[0]), (5, 4), textcoords="offset points", fontsize=8)
    for key, name, line in (("teacher_top1", "teacher", "--"), ("random_top1", "random", ":")):
        for i, (model, value) in enumerate(reference_lines(runs, protocol, key)):
            grey = GREYS[i % len(GREYS)]
            axes.axhline(value, color=grey, linestyle=line, linewidth=1.3, label=label(f"{name} {model}"))
            shown.append(value)
    axes.set(xlabel="epochs", ylabel="k-NN top-1 (%)", xlim=epoch_limits(last_epoch(runs)), ylim=percent_limits(shown))


def percent_limits(values: Sequence[float]) -> tuple[float, float]:
    """Around these percentages, so that they fill the axis, and within 0 to 100."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 100.0]
    room = max(1.0, 0.1 * (max(finite) - min(finite)))
    return max(0.0, min(finite) - room), min(100.0, max(finite) + room)


def reference_lines(runs: Sequence[Run], protocol: str, key: str) -> list[tuple[str, float]]:
    """`(architecture, accuracy)` of every teacher file, or of random encoders as the mean over seeds."""
    values: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for row in run.rows("knn")[-1:]:
            if row["protocol"] == protocol and key in row:
                teacher = run.teacher or {"arch": run.student, "sha256": ""}
                network = (run.student, "") if key == "random_top1" else (teacher["arch"], teacher["sha256"])
                values.setdefault(network, []).append(row[key])
    return [(model, float(np.mean(found))) for (model, _), found in values.items()]


# matching over a run

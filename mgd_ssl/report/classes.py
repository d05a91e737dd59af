"""How well every class is told from the others: from the confusions a classification leaves behind."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mgd_ssl.report.figures import (
    Picture,
    drawn,
    epoch_limits,
    epochs_of,
    label,
    last_epoch,
    legend,
    look,
    percent_limits,
    picture,
)
from mgd_ssl.run.read import Run

WORST = 12  # classes that are listed
CONFUSION = "confusion.npz"


class ClassRow(NamedTuple):
    """One of the worst classes."""

    name: str
    images: int
    accuracy: float  # percent
    taken_for: str  # the classes it was most often taken for, with counts


@dataclass(frozen=True)
class Classes:
    """Of one run's newest validation."""

    name: str
    note: str
    worst: list[ClassRow]
    pictures: list[Picture]


def validated(run: Run) -> Iterator[tuple[str, str, dict[str, list[float]]]]:
    """Protocol, state and accuracies of a classification's last epoch, and of the best on the same images."""
    averaged = ", averaged weights" if run.config["optim"].get("ema") else ""
    for row in run.rows("validation")[-1:]:
        state = run.state if run.finished else f"{run.state}; validation at step {row['step']}"
        for which, prefix in (("last epoch", ""), ("best epoch, chosen on the same images", "best_")):
            values = {name: [row[prefix + name]] for name in ("top1", "top5")}
            yield f"validation images, centre crops, {which}{averaged}", state, values


def class_reports(runs: Sequence[Run], notes: list[str]) -> list[Classes]:
    """Of every classification among the runs; what is missing is told in `notes`."""
    found = []
    for run in runs:
        if run.task != "classification":
            continue
        try:
            with np.load(run.folder / CONFUSION) as content:
                counts, names, epoch = content["counts"], content["names"].tolist(), int(content["epoch"])
            if counts.ndim != 2 or not len(names) == len(counts) == counts.shape[1] or not counts.sum():
                raise ValueError("its arrays do not fit one another")
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            notes.append(f"No classes of {run.name}: {CONFUSION} is missing or damaged ({error}).")
            continue
        note = f"Validation after epoch {epoch}, {counts.sum()} images of {(counts.sum(1) > 0).sum()} classes."
        worst = worst_classes(counts)
        rows = [class_row(counts, names, index) for index in worst]
        pictures = [accuracy_picture(run.name, counts), confusion_picture(run.name, counts, names, worst)]
        found.append(Classes(run.name, note, rows, pictures))
    return found


def accuracies(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[C] share of each class's images that are told rightly, in percent; NaN where it has none."""
    images = counts.sum(1)
    share: NDArray[np.float64] = np.where(images, 100 * np.diag(counts) / np.maximum(images, 1), np.nan)
    return share


def worst_classes(counts: NDArray[np.int64]) -> list[int]:
    """Indexes of the classes told least often, the worst first."""
    share = accuracies(counts)
    order = np.argsort(share, kind="stable")  # NaN comes last
    return [int(index) for index in order if np.isfinite(share[index])][:WORST]


def class_row(counts: NDArray[np.int64], names: Sequence[str], index: int) -> ClassRow:
    """One class with the three it was most often taken for."""
    others = counts[index].copy()
    others[index] = 0
    most = [int(other) for other in np.argsort(-others, kind="stable")[:3] if others[other]]
    told = ", ".join(f"{names[other]} ({others[other]})" for other in most)
    return ClassRow(names[index], int(counts[index].sum()), float(accuracies(counts)[index]), told)


def accuracy_picture(name: str, counts: NDArray[np.int64]) -> Picture:
    """Accuracy of every class, in ascending order."""
    share = np.sort(accuracies(counts)[counts.sum(1) > 0])
    with drawn() as figure:
        axes = figure.subplots()
        axes.plot(np.arange(1, len(share) + 1), share, drawstyle="steps-mid", color=look(0)["color"])
        axes.set(xlabel="classes, the worst first", ylabel="top-1 (%)", title="Accuracy of every class", ylim=(0, 100))
        return picture(figure, f"Accuracy of every class of {name} in ascending order")


def confusion_picture(name: str, counts: NDArray[np.int64], names: Sequence[str], worst: Sequence[int]) -> Picture:
    """What the worst classes were taken for, in percent of their images: themselves, one another, and the rest."""
    images = counts[worst].sum(1, keepdims=True)
    inside = 100 * counts[np.ix_(worst, worst)] / images
    rest = 100 - inside.sum(1, keepdims=True)
    labels = [label(names[index], 18) for index in worst]
    with drawn((6.4, 5.4)) as figure:
        axes = figure.subplots()
        shown = axes.imshow(np.hstack([inside, rest]), vmin=0, vmax=100, cmap="Blues")
        axes.set_xticks(range(len(worst) + 1), [*labels, "any other"], rotation=90, fontsize=8)
        axes.set_yticks(range(len(worst)), labels, fontsize=8)
        axes.grid(False)
        axes.set(xlabel="taken for", title="The worst classes")
        figure.colorbar(shown, ax=axes, label="% of the class's images", shrink=0.8)
        return picture(figure, f"What the worst classes of {name} were taken for", pixels=True)


def validation_picture(runs: Sequence[Run]) -> list[Picture]:
    """Top-1 over epochs of the classifications among these runs."""
    shown: list[float] = []
    with drawn() as figure:
        axes = figure.subplots()
        for i, run in enumerate(runs):
            if rows := run.rows("validation"):
                top1 = [row["top1"] for row in rows]
                style: dict[str, Any] = look(i)
                axes.plot(epochs_of(run, rows), top1, label=label(run.name), marker="o", markersize=3.5, **style)
                shown += top1
        if not shown:
            return []
        limits = {"xlim": epoch_limits(last_epoch(runs)), "ylim": percent_limits(shown)}
        axes.set(xlabel="epochs", ylabel="top-1 (%)", title="Validation", **limits)
        legend(figure, axes)
        return [picture(figure, "Top-1 accuracy on the validation images over epochs", "Centre crops")]

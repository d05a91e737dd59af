"""The page of an evaluated detector: its numbers, every class, curves, and boxes drawn on images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mgd_ssl.data.order import subset
from mgd_ssl.files import ELSEWHERE, write_whole, writing
from mgd_ssl.report.figures import COLOURS, Picture, drawn, label, picture
from mgd_ssl.run.environment import environment
from mgd_ssl.tasks.detection.average_precision import NUMBERS
from mgd_ssl.tasks.detection.evaluate import Evaluated

TEMPLATE = "detection.html"
MEANS = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "AP_small": "objects below 32² pixels",
    "AP_medium": "objects from 32² to 96² pixels",
    "AP_large": "objects above 96² pixels",
    "AR_1": "recall with 1 box an image",
    "AR_10": "recall with 10 boxes an image",
    "AR_100": "recall with 100 boxes an image",
    "AR_small": "recall of objects below 32² pixels",
    "AR_medium": "recall of objects from 32² to 96² pixels",
    "AR_large": "recall of objects above 96² pixels",
}
SURE = 0.3  # score from which on a box is drawn
LINE = 0.06  # height of a line of words, as a share of the image's
SHOWN_CURVES = 12  # classes with a curve of their own


def write_page(evaluated: Evaluated, shown: int) -> Path:
    """Write `detection.html` beside the results; returns where.

    Args:
        evaluated: what is told.
        shown: images that are drawn.

    Raises:
        DiskError: when it cannot be written.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    found = evaluated.average_precision
    page = templates.get_template(TEMPLATE).render(
        title=f"mgd_ssl detection: {evaluated.name}",
        evaluation=evaluated.evaluation,
        numbers=[(name, MEANS[name], found.numbers[name]) for name in NUMBERS],
        classes=sorted(found.classes.items(), key=lambda row: -(row[1]["AP"] or -1)),
        curves=curve_pictures(evaluated),
        images=image_pictures(evaluated, shown),
        left_out=evaluated.annotated.told(),
        sure=SURE,
        made_with=environment(),
    )
    path = evaluated.out / TEMPLATE
    with writing(path, ELSEWHERE):
        write_whole(path, page.encode())
    return path


def curve_pictures(evaluated: Evaluated) -> list[Picture]:
    """Precision over recall, averaged over classes at three overlaps, and of single classes at IoU 0.5."""
    curves, recall = evaluated.average_precision.curves, np.linspace(0, 1, 101)
    pictures = []
    with drawn() as figure:
        axes = figure.subplots()
        for values, name, colour in zip(curves, ("IoU 0.50", "IoU 0.75", "IoU 0.50 to 0.95"), COLOURS, strict=False):
            there = values[:, (values > -1).all(axis=0)]
            if there.size:
                axes.plot(recall, 100 * there.mean(axis=1), color=colour, label=name)
        _label_axes(axes, "Mean over classes")
        pictures.append(picture(figure, "precision over recall, mean over classes", "Mean over classes"))
    best = sorted(evaluated.average_precision.classes.items(), key=lambda row: -(row[1]["AP50"] or -1))[:SHOWN_CURVES]
    names = [category.name for category in evaluated.annotated.categories]
    with drawn() as figure:
        axes = figure.subplots()
        for i, (name, _) in enumerate(best):
            line = ("-", "--", ":")[i // len(COLOURS)]
            axes.plot(recall, 100 * curves[0][:, names.index(name)].clip(0), line, color=COLOURS[i % len(COLOURS)],
                      label=label(name, 18))  # fmt: skip
        _label_axes(axes, "Classes at IoU 0.50")
        caption = "Every class" if len(names) <= SHOWN_CURVES else f"The {SHOWN_CURVES} classes of the highest AP50"
        pictures.append(picture(figure, "precision over recall of single classes", caption))
    return pictures


def _label_axes(axes: Axes, title: str) -> None:
    axes.set(title=title, xlabel="recall", ylabel="precision (%)", xlim=(0, 1), ylim=(0, 101))
    axes.legend(fontsize=8)


def image_pictures(evaluated: Evaluated, shown: int) -> list[Picture]:
    """Images with the true boxes on the left and those found on the right."""
    annotated, found = evaluated.annotated, evaluated.detections
    pictures = []
    for index in subset(len(annotated.ids), shown, 0, "shown").tolist():
        pixels = np.asarray(annotated.images.open(index))
        truth = annotated.boxes_of(index)
        sure = (found.images == index) & (found.scores >= SURE)
        corners = found.boxes[sure]
        corners = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
        width = 3.6 * 2
        with drawn((width, 3.6 * pixels.shape[0] / pixels.shape[1] + 0.35)) as figure:
            left, right = figure.subplots(1, 2)
            _draw(left, pixels, truth.corners, truth.labels, [_name(evaluated, k) for k in truth.labels])
            told = [
                f"{_name(evaluated, k)} {score:.2f}"
                for k, score in zip(found.labels[sure], found.scores[sure], strict=True)
            ]
            _draw(right, pixels, corners, found.labels[sure], told)
            left.set_title("truth", fontsize=9)
            right.set_title("found", fontsize=9)
            name = annotated.images.name(index)
            pictures.append(picture(figure, f"true and found boxes on {name}", name, pixels=True))
    return pictures


def _name(evaluated: Evaluated, index: int) -> str:
    return label(evaluated.annotated.categories[index].name, 18)


def _draw(axes: Axes, pixels: np.ndarray, corners: np.ndarray, labels: np.ndarray, told: Sequence[str]) -> None:
    axes.imshow(pixels)
    axes.axis("off")
    for (x1, y1, x2, y2), kind, words in zip(corners.tolist(), labels.tolist(), told, strict=True):
        colour = COLOURS[kind % len(COLOURS)]
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.6))
        above = y1 > LINE * len(pixels)  # else the words would be cut off at the image's edge
        axes.text(x1, y1, words, fontsize=7, color="white", va="bottom" if above else "top", clip_on=True,
                  bbox={"facecolor": colour, "edgecolor": "none", "pad": 1})  # fmt: skip

"""The demo's table and picture: the report's, cut to what fits a terminal."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from PIL import Image

from mgd_ssl.printable import cell
from mgd_ssl.report import figures, matching_figures, tables
from mgd_ssl.run.read import Run


def summarised(runs: Sequence[Run], num_classes: int) -> pd.DataFrame:
    """Chance, random encoders and runs: k-NN, mean and deviation over seeds, and the speed."""
    chance = {"model": "-", "method": "chance", "epochs": 0, "images/s": ""}
    rows = [chance | {f"k-NN top-{k}": f"{100 * k / num_classes:.1f}" for k in (1, 5)}]
    for row in tables.rows(runs):
        if row.kind == "knn" and not row.is_published:
            rows.append(
                {
                    "model": row.model, "method": row.method, "epochs": row.epochs, "images/s": speed(row),
                    "k-NN top-1": tables.text(row.top1), "k-NN top-5": tables.text(row.top5),
                }
            )  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "method", "epochs", "k-NN top-1", "k-NN top-5", "images/s"])


def speed(row: tables.Row) -> str:
    """Images a second, mean over the runs; empty for encoders that were not trained."""
    speeds = [run.images_per_second for run in row.runs if row.epochs and run.images_per_second is not None]
    return f"{np.mean(speeds):.0f}" if speeds else ""


def write_tables(rows: pd.DataFrame, folder: Path) -> None:
    """`table.csv` and `table.md`."""
    rows.map(cell).to_csv(folder / "table.csv", index=False)
    (folder / "table.md").write_text(tables.markdown(rows))


def draw(runs: Sequence[Run], val: Path, path: Path) -> None:
    """The picture, of runs of one seed: an image of each class, k-NN over the epochs, and the matching cost."""
    with figures.drawn((13, 3.9)) as figure:
        left, middle, right = figure.subplots(1, 3)
        draw_classes(val, left)
        figures.draw_knn(runs, figures.protocols(runs)[0], middle)
        middle.set_title("frozen features; each curve starts at a random encoder")
        matching_figures.draw_matching(next(run for run in reversed(runs) if run.teacher is not None), right)
        right.set_title("matching updates: x before, o after")
        for axes in (middle, right):
            axes.legend(fontsize=7)
        figure.savefig(path, dpi=110)


def draw_classes(val: Path, axes: Axes) -> None:
    """The first image of every class on one sheet."""
    tiles = [np.asarray(Image.open(sorted(folder.iterdir())[0])) for folder in sorted(val.iterdir())]
    side = int(np.ceil(np.sqrt(len(tiles))))
    tiles = [np.pad(tile, ((1, 1), (1, 1), (0, 0)), constant_values=255) for tile in tiles]
    tiles += [np.full_like(tiles[0], 255)] * (side * side - len(tiles))
    sheet = np.vstack([np.hstack(tiles[row * side : (row + 1) * side]) for row in range(side)])
    axes.imshow(sheet)
    axes.set_title("one image of every class")
    axes.axis("off")

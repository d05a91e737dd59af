"""The demo's table and picture, read from the folders of its runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of one kind from a run's metrics.jsonl."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def records(runs: Sequence[dict[str, Any]], num_classes: int) -> pd.DataFrame:
    """One row a run and seed, with rows for chance and for random encoders before them."""
    rows = [{"model": "-", "method": "chance", "epochs": 0, "top1": 100 / num_classes, "top5": 500 / num_classes}]
    for run in runs:
        first, last = metrics(run["folder"], "knn")[0], metrics(run["folder"], "knn")[-1]
        train = metrics(run["folder"], "train")
        speed = float(np.median([row["images_per_second"] for row in train]))
        named = {"model": run["model"], "seed": run["seed"]}
        rows.append(
            {**named, "method": "random", "epochs": 0, "top1": first["random_top1"], "top5": first["random_top5"]}
        )
        rows.append(
            {**named, "method": run["method"], "epochs": run["epochs"], "top1": last["top1"], "top5": last["top5"],
             "images/s": speed}
        )  # fmt: skip
    # students of one seed start from the same random encoder, with and without a teacher
    return pd.DataFrame(rows).drop_duplicates(["model", "method", "epochs", "seed"]).reset_index(drop=True)


def summarised(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, with the standard deviation where there are several, in the order of the first seed."""
    rows: list[dict[str, Any]] = []
    keys = ["model", "method", "epochs"]
    for key, group in runs.groupby(keys, sort=False):
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        for column in ("top1", "top5"):
            values = group[column]
            spread = f" ± {values.std():.1f}" if len(values) > 1 else ""
            row[f"k-NN top-{column[-1]}"] = f"{values.mean():.1f}{spread}"
        speed = group.get("images/s", pd.Series(dtype=float)).mean()
        row["images/s"] = "" if np.isnan(speed) else f"{speed:.0f}"
        rows.append(row)
    order = {"chance": 0, "random": 1}
    rows.sort(key=lambda row: order.get(row["method"], 2))
    return pd.DataFrame(rows)


def write_tables(rows: pd.DataFrame, folder: Path) -> None:
    """`table.csv` and `table.md`."""
    rows.to_csv(folder / "table.csv", index=False)
    lines = [" | ".join(rows.columns), " | ".join("---" for _ in rows.columns)]
    lines += [" | ".join(map(str, row)) for row in rows.itertuples(index=False)]
    (folder / "table.md").write_text("".join(f"| {line} |\n" for line in lines))


def draw(runs: Sequence[dict[str, Any]], images: Path, path: Path) -> None:
    """The picture: an image of each class, k-NN over the images seen, and the matching cost."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    shown = next(iter(sorted(folder for folder in images.iterdir() if folder.is_dir()))) / "val"
    draw_classes(shown, left)
    seed = runs[0]["seed"]
    first = [run for run in runs if run["seed"] == seed]
    draw_knn(first, middle)
    draw_matching(next(run for run in reversed(first) if "MGD" in run["method"]), right)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_classes(val: Path, axes: Axes) -> None:
    """The first image of every class on one sheet."""
    tiles = [np.asarray(Image.open(sorted(folder.iterdir())[0])) for folder in sorted(val.iterdir())]
    side = int(np.ceil(np.sqrt(len(tiles))))
    tiles = [np.pad(tile, ((1, 1), (1, 1), (0, 0)), constant_values=255) for tile in tiles]
    tiles += [np.full_like(tiles[0], 255)] * (side * side - len(tiles))
    sheet = np.vstack([np.hstack(tiles[row * side : (row + 1) * side]) for row in range(side)])
    axes.imshow(sheet)
    axes.set_title("one image of every class", fontsize=10)
    axes.axis("off")


def draw_knn(runs: Sequence[dict[str, Any]], axes: Axes) -> None:
    """k-NN top-1 over epochs, and the random encoders they start from."""
    for run in runs:
        rows = metrics(run["folder"], "knn")
        steps = metrics(run["folder"], "train")[-1]
        per_epoch = steps["step"] / run["epochs"]
        axes.plot(
            [row["step"] / per_epoch for row in rows],
            [row["top1"] for row in rows],
            marker="o",
            markersize=3,
            label=f"{run['model']}, {run['method']}, {run['epochs']} epochs",
        )
    axes.set(xlabel="epochs", ylabel="k-NN top-1 (%)", ylim=(0, 100))
    axes.set_title("frozen features; each curve starts at a random encoder", fontsize=10)
    axes.legend(fontsize=7, loc="lower right")


def draw_matching(run: dict[str, Any], axes: Axes) -> None:
    """Mean cost of a matched pair by stage: the old assignment before each update, the new one after it."""
    rows = metrics(run["folder"], "matching")
    for stage in range(1, 5):
        epochs = [row["epoch"] for row in rows]
        after = [row[f"stage{stage}_cost_after"] for row in rows]
        (line,) = axes.plot(epochs, after, marker="o", markersize=3, label=f"stage {stage}")
        before = [(row["epoch"], row[f"stage{stage}_cost_before"]) for row in rows[1:]]
        axes.plot(*zip(*before, strict=True), "x", markersize=4, color=line.get_color())
    axes.set(xlabel="epochs", ylabel="mean cost of a matched pair")
    axes.set_title("matching updates: x before, o after", fontsize=10)
    axes.legend(fontsize=7)

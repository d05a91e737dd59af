"""Figures and pictures: nothing is cut, axes fit, and what is drawn are means and principal components."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mgd_ssl.report import figures, matching_figures
from mgd_ssl.report.channels import binned
from mgd_ssl.report.figures import POINTS, Picture, thinned
from mgd_ssl.report.pictures import principal_components
from mgd_ssl.run.read import read_runs
from tests.report.reports import Make

# pictures


def figures_of(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], object]) -> list[Figure]:
    """The figures that `draw` makes, laid out and drawn."""
    found: list[Figure] = []

    def keep(figure: Figure, *words: Any, **options: Any) -> Picture:
        FigureCanvasAgg(figure).draw()
        found.append(figure)
        return Picture("data:", "")

    for module in (figures, matching_figures):
        monkeypatch.setattr(module, "picture", keep)
    draw()
    return found


def test_no_legend_is_cut(copied: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["short", "W" * 60, "seed=0,mgd.weight=0.0001,data.crop_scale=0.2-1.0,optim.lr=0.03", *"abcd"]
    runs = read_runs([copied("mgd", name, seed=i) for i, name in enumerate(names)])
    drawn = figures_of(monkeypatch, lambda: (figures.curves(runs), matching_figures.matching_pictures(runs[0])))
    assert len(drawn) > 8
    for figure in drawn:
        [legend] = figure.legends
        box, whole = legend.get_window_extent(), figure.bbox
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
        axes = figure.axes[0].get_window_extent()
        assert box.y1 < axes.y0 and axes.height > 120  # it takes no room from the curves
    assert [line.get_text() for line in drawn[-1].legends[0].get_texts()] == [f"stage {i}" for i in (1, 2, 3, 4)]


def test_axes_fit_what_is_drawn(copied: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = read_runs([copied("moco", "run")])
    knn = runs[0].rows("knn")
    for i, row in enumerate(knn):
        row |= {"top1": 30.0 + i, "random_top1": 28.0}
    [figure] = figures_of(monkeypatch, lambda: figures.knn_picture(runs, knn[0]["protocol"]))
    low, high = figure.axes[0].get_ylim()
    assert 25 < low < 28 and 30 + len(knn) - 1 < high < 40
    for extreme in (0.0, 100.0):
        knn[0]["top1"] = extreme
        [figure] = figures_of(monkeypatch, lambda: figures.knn_picture(runs, knn[0]["protocol"]))
        low, high = figure.axes[0].get_ylim()
        assert 0 <= low <= extreme <= high <= 100


def test_a_single_point_stands_on_the_axis_of_the_others(copied: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    [run] = read_runs([copied("mgd", "run")])
    protocol = run.rows("knn")[0]["protocol"]
    single = dataclasses.replace(run, metrics=[row for row in run.metrics if row["kind"] == "train"]
                                 + run.rows("knn")[:1] + run.rows("matching")[:1])  # fmt: skip
    knn, matching = figures_of(
        monkeypatch, lambda: (figures.knn_picture([single], protocol), matching_figures.matching_pictures(single))
    )
    low, high = knn.axes[0].get_xlim()
    assert low <= 0 and high == pytest.approx(2, abs=0.1)  # epochs
    assert [text.get_text() for text in knn.axes[0].texts] == [f"{run.rows('knn')[0]['top1']:.1f}"]
    bars = [cast(Rectangle, bar).get_height() for bar in matching.axes[0].patches]
    assert bars == [run.rows("matching")[0][f"stage{stage}_cost_after"] for stage in (1, 2, 3, 4)]


# small functions, against naive ones


def test_binned_matrices_are_means_of_blocks() -> None:
    matrix = np.random.default_rng(0).normal(size=(512, 1025)).astype(np.float32)
    small = binned(matrix)
    assert small.shape == (256, 512)
    ends = [1025 * i // 512 for i in range(513)]
    for row, column in ((0, 0), (3, 100), (255, 511)):
        block = matrix[2 * row : 2 * row + 2, ends[column] : ends[column + 1]]
        assert small[row, column] == pytest.approx(block.mean(), abs=1e-6)
    assert binned(matrix[:5, :7]).shape == (5, 7)


def test_thinned_curves_keep_their_mean() -> None:
    x, y = list(range(POINTS * 3)), np.random.default_rng(0).normal(size=POINTS * 3).tolist()
    few_x, few_y = thinned(x, y)
    assert len(few_x) == len(few_y) == POINTS
    assert few_y[1] == pytest.approx(np.mean(y[3:6]))
    assert thinned([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_principal_components_are_eigenvectors_of_the_covariance() -> None:
    values = np.random.default_rng(0).normal(size=(50, 6)) * [5, 1, 3, 1, 1, 1]
    points, shares = principal_components(values.astype(np.float32))
    eigenvalues = np.linalg.eigvalsh(np.cov(values.T))[::-1]
    assert points.var(axis=0, ddof=1) == pytest.approx(eigenvalues[:2], rel=1e-4)
    assert shares == pytest.approx(eigenvalues[:2] / eigenvalues.sum(), rel=1e-4)

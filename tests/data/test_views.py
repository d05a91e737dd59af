"""The fast renderers of views against PIL's, with the same table."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mgd_ssl.bench.photographs import photograph
from mgd_ssl.data.views_cpu import cut_view, render_view_fast
from mgd_ssl.data.views_device import Finishing, finish_views
from moco import View, ViewKey, ViewPolicy, draw_view, render_view
from moco.augment import box_radius

Pixels = NDArray[np.uint8]

COUNT = 24  # views a mean difference is taken over
RESIZE, OPERATION, CHAIN = 0.1, 0.7, 1.7  # most mean absolute difference in levels of 255
PLAIN = View(0, 0, 224, 224, 0, 1, 1, 1, 0, 0, 1, 2, 3, 0, 0)
RECIPES = {"v1": ViewPolicy.v1(), "v2": ViewPolicy()}


def on_cpu(pixels: Pixels, view: View, size: int) -> Pixels:
    out = np.empty((size, size, 3), np.uint8)
    render_view_fast(pixels, view, out)
    return out


def on_device(pixels: Pixels, view: View, size: int) -> Pixels:
    out = np.empty((size, size, 3), np.uint8)
    cut_view(pixels, view, out)
    row = torch.tensor([view], dtype=torch.float32)
    return finish_views(torch.from_numpy(out)[None], row, max(2.0, view.sigma))[0].numpy()


BACKENDS = {"cpu": on_cpu, "device": on_device}


@cache
def pictures(width: int = 500, height: int = 375) -> list[Pixels]:
    return [np.array(photograph(seed, width, height)) for seed in range(4)]


def difference(backend: str, views: list[View], size: int = 224, shape: tuple[int, int] = (224, 224)) -> float:
    """Mean absolute difference to PIL over all views, which go round the pictures."""
    total = 0.0
    for i, view in enumerate(views):
        pixels = pictures(*shape)[i % 4]
        expected = np.asarray(render_view(Image.fromarray(pixels), view, size))
        total += np.abs(expected.astype(int) - BACKENDS[backend](pixels, view, size)).mean()
    return total / len(views)


def uniform(low: float, high: float) -> list[float]:
    return np.random.default_rng(0).uniform(low, high, COUNT).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_resize_is_pils(backend: str) -> None:
    drawn = [draw_view(ViewPolicy(), 500, 375, ViewKey(seed=0, epoch=0, image=i, view=0)) for i in range(COUNT)]
    views = [PLAIN._replace(left=v.left, top=v.top, width=v.width, height=v.height, flip=v.flip) for v in drawn]
    assert {view.flip for view in views} == {False, True}
    assert difference(backend, views, shape=(500, 375)) < RESIZE


def test_the_cut_is_what_torch_publishes() -> None:
    """The kernel is called by a name that torch does not promise to keep."""
    pixels = pictures(500, 375)[0]
    view = PLAIN._replace(left=20, top=10, width=300, height=260)
    out = np.empty((96, 96, 3), np.uint8)
    cut_view(pixels, view, out)
    crop = torch.from_numpy(pixels[10:270, 20:320].copy()).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(crop, (96, 96), mode="bilinear", antialias=True)
    assert np.array_equal(out, expected[0].permute(1, 2, 0).numpy())
    cut_view(pixels, view._replace(flip=1), out)
    assert np.array_equal(out[:, ::-1], expected[0].permute(1, 2, 0).numpy())


OPERATIONS: dict[str, Callable[[], list[View]]] = {
    "brightness": lambda: [PLAIN._replace(brightness=factor) for factor in uniform(0.6, 1.4)],
    "contrast": lambda: [PLAIN._replace(contrast=factor) for factor in uniform(0.6, 1.4)],
    "saturation": lambda: [PLAIN._replace(saturation=factor) for factor in uniform(0.6, 1.4)],
    "hue of v2": lambda: [PLAIN._replace(hue=turns) for turns in uniform(-0.1, 0.1)],
    "hue of v1": lambda: [PLAIN._replace(hue=turns) for turns in uniform(-0.4, 0.4)],
    "grey": lambda: [PLAIN._replace(grey=1)] * 4,
    "grey before brightness": lambda: [PLAIN._replace(grey=2, brightness=factor) for factor in uniform(0.6, 1.4)],
    "weak blur": lambda: [PLAIN._replace(sigma=sigma) for sigma in uniform(0.1, 0.7)],
    "blur": lambda: [PLAIN._replace(sigma=sigma) for sigma in uniform(0.7, 1.4)],
    "strong blur": lambda: [PLAIN._replace(sigma=sigma) for sigma in uniform(1.4, 2.0)],
    "blur beyond the recipe": lambda: [PLAIN._replace(sigma=sigma) for sigma in (3.3, 5.0, 8.0, 40.0)],
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_operation_is_pils(backend: str, operation: str) -> None:
    views = OPERATIONS[operation]()
    done_nothing = difference(backend, [PLAIN])
    assert done_nothing == 0
    found = difference(backend, views)
    assert found < (0.01 if backend == "device" else OPERATION)  # the device repeats PIL's arithmetic


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_whole_chain_is_pils(backend: str, recipe: str) -> None:
    views = [draw_view(RECIPES[recipe], 500, 375, ViewKey(seed=3, epoch=0, image=i, view=0)) for i in range(2 * COUNT)]
    assert difference(backend, views, shape=(500, 375)) < CHAIN


def test_the_limits_would_catch_a_wrong_order_and_a_missing_operation() -> None:
    pixels = pictures(224, 224)[0]
    view = PLAIN._replace(brightness=1.4, contrast=0.6, saturation=1.4, hue=0.1, sigma=1.0)
    expected = on_cpu(pixels, view, 224).astype(int)
    for wrong in (view._replace(first=1, second=0), view._replace(hue=0), view._replace(sigma=0)):
        assert np.abs(expected - on_cpu(pixels, wrong, 224)).mean() > CHAIN


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_order_of_operations_is_honoured(backend: str) -> None:
    jitter = PLAIN._replace(brightness=1.4, contrast=0.7, saturation=0.6, hue=0.1)
    orders = [(a, b, c, 6 - a - b - c) for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3]
    for order in orders:
        view = jitter._replace(**dict(zip(("first", "second", "third", "fourth"), order, strict=True)))
        assert difference(backend, [view], size=64) < CHAIN


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (1, 500), (500, 1), (7, 64), (2000, 10)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_images_and_strips_are_pils(backend: str, size: tuple[int, int], recipe: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    for index in range(6):
        view = draw_view(RECIPES[recipe], *size, ViewKey(seed=0, epoch=0, image=index, view=0))
        expected = np.asarray(render_view(Image.fromarray(pixels), view, 32)).astype(int)
        found = BACKENDS[backend](pixels, view, 32)
        assert np.abs(expected - found).mean() < 2 * CHAIN  # pure noise, where hue is at its roughest


@pytest.mark.parametrize("backend", BACKENDS)
def test_rendering_leaves_the_pixels_as_they_are(backend: str) -> None:
    pixels = pictures(224, 224)[0]
    before = pixels.copy()
    for index in range(5):
        BACKENDS[backend](pixels, draw_view(ViewPolicy(), 224, 224, ViewKey(seed=0, epoch=0, image=index, view=0)), 64)
    assert np.array_equal(pixels, before)


def test_a_view_finished_in_a_batch_is_the_one_finished_alone() -> None:
    pixels = torch.from_numpy(np.stack(pictures(64, 64) * 3))
    views = [draw_view(ViewPolicy(), 64, 64, ViewKey(seed=0, epoch=0, image=i, view=0)) for i in range(len(pixels))]
    rows = torch.tensor(views, dtype=torch.float32)
    together = finish_views(pixels, rows, 2.0)
    for i in range(len(pixels)):
        assert torch.equal(together[i : i + 1], finish_views(pixels[i : i + 1], rows[i : i + 1], 2.0))
    assert together.shape == pixels.shape and together.dtype == torch.uint8 and together.is_contiguous()


def test_without_any_blur_there_is_nothing_to_pay_for_it() -> None:
    assert (ViewPolicy().max_sigma, ViewPolicy.v1().max_sigma) == (2.0, 0.0)
    pixels = torch.from_numpy(np.stack(pictures(64, 64)))
    views = [draw_view(ViewPolicy.v1(), 64, 64, ViewKey(seed=0, epoch=0, image=i, view=0)) for i in range(len(pixels))]
    rows = torch.tensor(views, dtype=torch.float32)
    assert torch.equal(finish_views(pixels, rows, 0.0), finish_views(pixels, rows, 2.0))


def test_finishing_compiles_without_a_break_and_an_operation_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object, **options: object) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    torch._dynamo.reset()
    pixels = torch.from_numpy(np.stack(pictures(64, 64)))
    views = [draw_view(ViewPolicy(), 64, 64, ViewKey(seed=0, epoch=0, image=i, view=0)) for i in range(4)]
    rows = torch.tensor(views, dtype=torch.float32)
    for number, max_sigma in enumerate((2.0, 5.0), start=1):
        compiled = Finishing(max_sigma, compiled=True, last=lambda pixels: 2 * pixels.int())
        assert torch.equal(compiled(pixels, rows), 2 * finish_views(pixels, rows, 2.0).int())
        assert len(graphs) == 2 + number  # the beginning, the four operations, and an end for every blur


def test_box_radius_preserves_the_variance_of_the_gaussian() -> None:
    for sigma in (0.1, 0.5, 1.0, 1.41, 1.42, 2.0, 7.3):
        radius = box_radius(sigma)
        reach = int(radius) + 1
        offsets = np.arange(-reach, reach + 1)
        weights = np.clip(radius + 1 - np.abs(offsets), 0, 1)
        variance = 3 * (weights * offsets**2).sum() / weights.sum()  # of three passes
        assert abs(variance - sigma**2) < 1e-9
        tensor = box_radius(torch.tensor(sigma, dtype=torch.float64))
        assert abs(float(tensor) - radius) < 1e-12

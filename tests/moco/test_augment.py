"""Views of MoCo v1 and v2 against torchvision's own transforms: distributions, and pixels."""

import math
from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as v1
from PIL import Image, ImageFilter
from torchvision import transforms

from moco.augment import COLOUR_ORDERS, View, ViewKey, ViewPolicy, draw_view, render_view

COUNT = 20_000
KS_LIMIT = 1.63 * math.sqrt(2 / COUNT)  # two samples, 1 %
SIZES = [(500, 375), (12, 40)]  # the second one often needs another attempt, and shows a position off by one


def draw(
    index: int = 0, *, policy: ViewPolicy | None = None, size: tuple[int, int] = (500, 375), **address: int
) -> View:
    key = {"seed": 1, "epoch": 0, "view": 0, **address}
    return draw_view(policy or ViewPolicy(), *size, ViewKey(image=index, **key))


@cache
def table(size: tuple[int, int] = SIZES[0], v1_recipe: bool = False) -> np.ndarray:
    """[COUNT, 15] views."""
    policy = ViewPolicy.v1() if v1_recipe else ViewPolicy()
    return np.array([draw(index, policy=policy, size=size) for index in range(COUNT)])


def column(name: str, views: np.ndarray) -> np.ndarray:
    return views[:, View._fields.index(name)]


def ks_distance(one: np.ndarray, two: np.ndarray) -> float:
    points = np.concatenate([one, two])
    shares = [np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (one, two)]
    return float(np.abs(shares[0] - shares[1]).max())


@cache
def torchvision_boxes(size: tuple[int, int]) -> np.ndarray:
    """[COUNT, 4] top, left, height, width."""
    torch.manual_seed(0)
    image = torch.empty(3, size[1], size[0], device="meta")
    return np.array([transforms.RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(COUNT)])


@pytest.mark.parametrize("size", SIZES)
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    left, top, width, height = table(size)[:, :4].T
    their_top, their_left, their_height, their_width = torchvision_boxes(size).T
    assert ks_distance(width * height, their_width * their_height) < KS_LIMIT
    assert ks_distance(np.log(width / height), np.log(their_width / their_height)) < KS_LIMIT
    assert ks_distance(left, their_left) < KS_LIMIT
    assert ks_distance(top, their_top) < KS_LIMIT


@pytest.mark.parametrize(("recipe", "hue"), [("v2", 0.1), ("v1", 0.4)])
def test_factors_are_distributed_as_color_jitters(recipe: str, hue: float) -> None:
    views = table(SIZES[0], recipe == "v1")
    torch.manual_seed(0)
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, hue)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    theirs = np.array([transforms.ColorJitter.get_params(*ranges)[1:] for _ in range(COUNT)])
    jittered = column("brightness", views) != 1
    coloured = column("hue", views) != 0
    for i, (name, chosen) in enumerate(
        [("brightness", jittered), ("contrast", jittered), ("saturation", coloured), ("hue", coloured)]
    ):
        ours = column(name, views)[chosen]
        assert ks_distance(ours, theirs[: len(ours), i]) < 1.63 * math.sqrt(2 / len(ours)), name


def assert_share(hits: np.ndarray, probability: float) -> None:
    deviation = math.sqrt(probability * (1 - probability) / len(hits))
    assert abs(hits.mean() - probability) <= 4 * deviation


def test_v2_probabilities() -> None:
    views = table()
    assert_share(column("flip", views) == 1, 0.5)
    assert_share(column("brightness", views) != 1, 0.8)
    assert_share(column("grey", views) == 1, 0.2)
    assert_share(column("sigma", views) > 0, 0.5)
    jittered = column("brightness", views) != 1
    for name, identity in (("contrast", 1), ("saturation", 1), ("hue", 0)):
        assert np.array_equal(column(name, views) != identity, jittered)


def test_v1_probabilities() -> None:
    views = table(SIZES[0], True)
    assert_share(column("flip", views) == 1, 0.5)
    assert_share(column("grey", views) == 2, 0.2)
    assert (column("brightness", views) != 1).all() and (column("contrast", views) != 1).all()
    assert (column("sigma", views) == 0).all()


def test_v1_grey_views_keep_saturation_and_hue() -> None:
    views = table(SIZES[0], True)
    grey = column("grey", views) == 2
    assert (column("saturation", views)[grey] == 1).all() and (column("hue", views)[grey] == 0).all()
    assert (column("saturation", views)[~grey] != 1).all() and (column("hue", views)[~grey] != 0).all()


def test_operations_are_independent_of_one_another() -> None:
    views = table()
    draws = [
        column("flip", views), column("brightness", views) != 1, column("grey", views), column("sigma", views) > 0,
        column("left", views), column("width", views) * column("height", views),
    ]  # fmt: skip
    correlation = np.corrcoef(np.array(draws, dtype=float)) - np.eye(len(draws))
    correlation[4, 5] = correlation[5, 4] = 0  # a large crop has little room to move
    assert np.abs(correlation).max() < 4 / math.sqrt(COUNT)


def test_blur_sigma_is_uniform_in_its_range() -> None:
    sigma = column("sigma", table())
    sigma = sigma[sigma > 0]
    uniform = (sigma - 0.1) / 1.9
    assert uniform.min() >= 0 and uniform.max() <= 1
    grid = (np.arange(len(uniform)) + 0.5) / len(uniform)
    assert np.abs(np.sort(uniform) - grid).max() < 1.63 / math.sqrt(len(uniform))


def test_all_24_colour_orders_occur_evenly() -> None:
    assert len(COLOUR_ORDERS) == 24 and all(sorted(order) == [0, 1, 2, 3] for order in COLOUR_ORDERS)
    first = View._fields.index("first")
    counts = Counter(tuple(int(each) for each in row) for row in table()[:, first : first + 4])
    assert set(counts) == set(COLOUR_ORDERS)
    expected = COUNT / 24
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 41.64  # 23 degrees of freedom, 1 %


@pytest.mark.parametrize("size", [*SIZES, (1, 1), (2, 3), (3, 2), (1, 500), (500, 1), (7, 64), (2000, 10)])
def test_crop_boxes_lie_inside(size: tuple[int, int]) -> None:
    width, height = size
    for index in range(300):
        view = draw(index, size=size)
        assert view.left >= 0 and view.left + view.width <= width and view.width >= 1
        assert view.top >= 0 and view.top + view.height <= height and view.height >= 1
        assert all(float(value).is_integer() for value in view[:4])


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1, 500), (0, 249, 1, 1)),
        ((500, 1), (249, 0, 1, 1)),
        ((30, 3000), (0, 1480, 30, 40)),
        ((3000, 30), (1480, 0, 40, 30)),
    ],
)
def test_long_images_give_the_largest_central_crop(size: tuple[int, int], box: tuple[int, ...]) -> None:
    for index in range(20):
        assert tuple(draw(index, size=size)[:4]) == box
    top, left, height, width = transforms.RandomResizedCrop.get_params(
        torch.empty(3, size[1], size[0]), [0.2, 1.0], [3 / 4, 4 / 3]
    )
    assert (left, top, width, height) == box


@pytest.mark.parametrize("size", [(3, 2), (1, 1), (1, 500), (11, 4)])
def test_tiny_images_render(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    for index in range(10):
        assert render_view(image, draw(index, size=size), 32).size == (32, 32)


def test_a_view_is_a_function_of_its_address() -> None:
    for index in (0, 5, 2**31):
        first = draw(index, epoch=3)
        draw(7), np.random.default_rng(0).random(), np.random.random(), torch.rand(1)
        assert draw(index, epoch=3) == first


def test_views_of_different_addresses_differ() -> None:
    addresses = [
        (seed, epoch, index, view) for seed in (0, 1) for epoch in (0, 1, 2) for index in (0, 1, 2) for view in (0, 1)
    ]
    views = {draw(index, seed=seed, epoch=epoch, view=view)[:6] for seed, epoch, index, view in addresses}
    assert len(views) == len(addresses)


def test_the_two_views_of_an_image_are_independent() -> None:
    keys = np.array([draw(index, view=1) for index in range(4000)])
    queries = table()[:4000]
    for name in ("left", "brightness", "flip", "grey", "sigma"):
        correlation = np.corrcoef(column(name, queries), column(name, keys))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(4000), name


def test_the_size_of_an_image_changes_its_crop_alone() -> None:
    for index in range(50):
        assert draw(index, size=(500, 375))[4:] == draw(index, size=(64, 64))[4:]


def photograph(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC))
    grain = np.random.default_rng(seed + 1).integers(-20, 21, image.shape)
    return Image.fromarray(np.clip(image + grain, 0, 255).astype(np.uint8))


def published_v2(image: Image.Image, view: View, size: int) -> Image.Image:
    """Crop, RandomApply(ColorJitter), RandomGrayscale, GaussianBlur, RandomHorizontalFlip, as in main_moco.py."""
    box = (int(view.top), int(view.left), int(view.height), int(view.width))
    image = v1.resized_crop(image, *box, [size, size])
    for operation in (view.first, view.second, view.third, view.fourth):
        adjust: Callable[[Image.Image, float], Image.Image]
        adjust, factor = [
            (v1.adjust_brightness, view.brightness),
            (v1.adjust_contrast, view.contrast),
            (v1.adjust_saturation, view.saturation),
            (v1.adjust_hue, view.hue),
        ][int(operation)]
        if (view.brightness, view.contrast, view.saturation, view.hue) != (1, 1, 1, 0):
            image = adjust(image, factor)
    if view.grey:
        image = v1.rgb_to_grayscale(image, num_output_channels=3)
    if view.sigma:
        image = image.filter(ImageFilter.GaussianBlur(radius=view.sigma))
    return v1.hflip(image) if view.flip else image


def published_v1(image: Image.Image, view: View, size: int) -> Image.Image:
    """Crop, RandomGrayscale, ColorJitter, RandomHorizontalFlip, as in main_moco.py."""
    left, top, width, height = view[:4]
    image = image.crop((int(left), int(top), int(left + width), int(top + height)))
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    if view.grey:
        image = image.convert("L").convert("RGB")
    for operation in (view.first, view.second, view.third, view.fourth):
        if operation == 0:
            image = v1.adjust_brightness(image, view.brightness)
        elif operation == 1:
            image = v1.adjust_contrast(image, view.contrast)
        elif operation == 2:
            image = v1.adjust_saturation(image, view.saturation)
        elif operation == 3:
            image = v1.adjust_hue(image, view.hue)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else image


def test_v2_rendering_equals_the_published_chain_pixel_by_pixel() -> None:
    image = photograph()
    for index in range(200):
        view = draw(index, size=image.size)
        rendered, expected = render_view(image, view, 64), published_v2(image, view, 64)
        assert rendered.mode == "RGB" and rendered.size == (64, 64)
        assert np.array_equal(np.asarray(rendered), np.asarray(expected)), view


def test_v1_rendering_equals_the_published_chain_pixel_by_pixel() -> None:
    image = photograph(2)
    for index in range(200):
        view = draw(index, policy=ViewPolicy.v1(), size=image.size)
        rendered, expected = render_view(image, view, 64), published_v1(image, view, 64)
        assert np.array_equal(np.asarray(rendered), np.asarray(expected)), view


def test_the_identity_view_is_the_resized_image() -> None:
    image = photograph(3)
    view = View(0, 0, 160, 120, 0, 1, 1, 1, 0, 0, 1, 2, 3, 0, 0)
    expected = image.resize((48, 48), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(render_view(image, view, 48)), np.asarray(expected))


def test_rendering_leaves_the_image_as_it_is() -> None:
    image = photograph(4)
    before = np.asarray(image).copy()
    for index in range(20):
        render_view(image, draw(index, size=image.size), 32)
    assert np.array_equal(np.asarray(image), before)

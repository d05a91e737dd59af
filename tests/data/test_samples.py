"""Batches of views and crops: the same whatever the workers, with replacements for what cannot be read."""

import multiprocessing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from mgd_ssl.config import DataConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.loader import batches
from mgd_ssl.data.order import chunks
from mgd_ssl.data.samples import Backend, CentreCrops, EvalBatch, PretrainBatch, chosen_backend, view_policy
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.errors import UserError
from moco import ViewKey, ViewPolicy, draw_view, render_view
from tests.conftest import write_images
from tests.data.reading import finished, keys, touch, two_views

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """20 images of which five cannot be decoded: truncated, empty, text, of another size than told, no file at all."""
    root = tmp_path / "photos"
    paths = write_images(root, 20)
    paths[3].write_bytes(paths[3].read_bytes()[:300])
    paths[7].write_bytes(b"")
    paths[12].write_text("<html>404</html>")
    paths[15].write_bytes(b"BM" + bytes(10))
    paths[18].unlink()
    paths[18].symlink_to("gone.jpg")
    return root


BROKEN = ["0003.jpg", "0007.jpg", "0012.jpg", "0015.jpg", "0018.jpg"]


def test_views_are_those_drawn_and_rendered_for_their_address(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    write_images(root, 3)
    dataset = two_views(root, seed=5)
    batch = dataset.__getitems__([(4, 2), (4, 0)])
    assert batch.im_q.shape == (2, 32, 32, 3) and batch.im_q.dtype == torch.uint8
    for row, index in enumerate((2, 0)):
        image = dataset.images.open(index)
        for v, tensor in enumerate((batch.im_q, batch.im_k)):
            view = draw_view(ViewPolicy(), *image.size, ViewKey(seed=5, epoch=4, image=index, view=v))
            assert np.array_equal(tensor[row].numpy(), np.asarray(render_view(image, view, 32)))


@pytest.mark.parametrize("backend", ["cpu", "device"])
def test_backends_render_the_same_views_up_to_rounding(photos: Path, backend: Backend) -> None:
    expected = two_views(photos, seed=5).__getitems__(keys(4))
    batch = two_views(photos, 5, backend).__getitems__(keys(4))
    assert (batch.rows is None) == (backend == "cpu")
    assert batch.unreadable == expected.unreadable
    assert (finished(batch).int() - finished(expected).int()).abs().float().mean() < 1.7


@pytest.mark.parametrize("backend", get_args(Backend))
def test_a_sample_does_not_depend_on_its_batch(photos: Path, backend: Backend) -> None:
    dataset = two_views(photos, backend=backend)
    together = finished(dataset.__getitems__(keys(1)))
    for index in (0, 7, 19):
        assert torch.equal(finished(dataset.__getitems__([(1, index)]))[:, 0], together[:, index])


def test_the_backend_follows_the_device_unless_it_is_named() -> None:
    for device, automatic in (("cpu", "cpu"), ("cuda", "device")):
        assert chosen_backend("auto", torch.device(device)) == automatic
        for named in get_args(Backend):
            assert chosen_backend(named, torch.device(device)) == named


def test_unreadable_images_are_replaced_by_the_same_ones_every_time(photos: Path) -> None:
    dataset = CentreCrops(ImageList.scan(photos), 32, seed=0)
    first, again = dataset.__getitems__(range(20)), dataset.__getitems__(list(range(20)))
    assert torch.equal(first.images, again.images) and torch.equal(first.indices, again.indices)
    assert first.unreadable == again.unreadable
    assert {failure.name for failure in first.unreadable} == set(BROKEN)
    assert all(failure.why for failure in first.unreadable)

    broken = [int(name[:4]) for name in BROKEN]
    for row, index in enumerate(first.indices.tolist()):
        assert index not in broken
        assert (index == row) == (row not in broken)
        assert torch.equal(first.images[row], first.images[index])
    assert len({int(first.indices[index]) for index in broken}) > 1
    alone = dataset.__getitems__([7])
    assert alone.indices[0] == first.indices[7] and alone.unreadable[0].name == "0007.jpg"


def test_replacements_depend_on_the_seed_but_not_on_the_epoch(photos: Path) -> None:
    images = ImageList.scan(photos)
    used = [CentreCrops(images, 32, seed).__getitems__(range(20)).indices.tolist() for seed in range(6)]
    assert len({tuple(each) for each in used}) > 1
    dataset = two_views(photos)
    assert dataset.__getitems__(keys(0)).unreadable == dataset.__getitems__(keys(1)).unreadable


def test_a_replacement_is_seen_in_the_view_of_its_own_address(photos: Path) -> None:
    dataset = two_views(photos)
    stand_in = int(CentreCrops(dataset.images, 32, seed=0).__getitems__([7]).indices[0])
    image = dataset.images.open(stand_in)
    view = draw_view(ViewPolicy(), *image.size, ViewKey(seed=0, epoch=2, image=7, view=0))
    expected = np.asarray(render_view(image, view, 32))
    assert np.array_equal(dataset.__getitems__([(2, 7)]).im_q[0].numpy(), expected)


def collect(dataset: Dataset[Any], order: Iterable[Any], workers: int) -> list[Any]:
    with batches(dataset, order, workers, pin=False) as iterator:
        found = list(iterator)
    assert not multiprocessing.active_children()
    return found


def assert_same(one: PretrainBatch | EvalBatch, two: PretrainBatch | EvalBatch) -> None:
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert one.unreadable == two.unreadable


@pytest.mark.parametrize("backend", get_args(Backend))
def test_batches_do_not_depend_on_the_workers(photos: Path, backend: Backend) -> None:
    order = [keys(epoch)[start : start + 4] for epoch in range(2) for start in range(0, 20, 4)]
    alone = collect(two_views(photos, backend=backend), order, 0)
    assert len(alone) == 10 and isinstance(alone[0], PretrainBatch)
    for workers in (1, 2):
        for one, two in zip(alone, collect(two_views(photos, backend=backend), order, workers), strict=True):
            assert_same(one, two)


def test_centre_crops_do_not_depend_on_the_workers(photos: Path) -> None:
    dataset = CentreCrops(ImageList.scan(photos), 24, seed=0)
    order = chunks(np.arange(20), 7)
    for one, two in zip(collect(dataset, order, 0), collect(dataset, order, 2), strict=True):
        assert_same(one, two)


def test_workers_end_when_the_block_is_left_early(photos: Path) -> None:
    with batches(two_views(photos), [keys(epoch) for epoch in range(50)], 2, pin=False) as iterator:
        next(iterator)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def test_workers_end_after_an_error_in_the_block(photos: Path) -> None:
    def training() -> None:
        with batches(two_views(photos), [keys(epoch) for epoch in range(50)], 1, pin=False) as iterator:
            next(iterator)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        training()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_unreadable_images_is_one_plain_sentence(tmp_path: Path, workers: int) -> None:
    touch(tmp_path, *(f"{i}.jpg" for i in range(60)))
    with pytest.raises(UserError) as error:
        collect(two_views(tmp_path), [keys(0, 4)], workers)
    sentence = str(error.value)
    assert sentence.startswith("50 images tried in a row are unreadable, last ")
    assert sentence.endswith("): check that the folder holds whole images")
    assert str(tmp_path) in sentence and ".jpg (UnidentifiedImageError" in sentence
    assert "\n" not in sentence and "Traceback" not in sentence
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_sentence_is_whole_even_where_a_name_has_two_lines(tmp_path: Path, workers: int) -> None:
    touch(tmp_path, "one\ntwo.jpg")
    with pytest.raises(UserError) as error:
        collect(two_views(tmp_path), [[(0, 0)]], workers)
    assert str(error.value).startswith(f"50 images tried in a row are unreadable, last {tmp_path / 'one'}\ntwo.jpg (")


def test_a_thousand_unreadable_among_two_thousand_is_a_matter_of_the_limit(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(2000):
        if i % 2:
            (root / f"{i:04d}.png").write_bytes(b"\x89PNG broken")
        else:
            Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(root / f"{i:04d}.png")
    images = ImageList.scan(root)
    skipped = SkippedFiles(tmp_path / "skipped.jsonl", images, max_share=0.5)
    for batch in collect(CentreCrops(images, 8, seed=0), chunks(np.arange(2000), 250), 0):
        assert (batch.indices % 2 == 0).all()
        skipped.note(batch.unreadable)
        skipped.share()
    assert len(skipped.known) == 1000
    assert len(skipped.path.read_text().splitlines()) == 1000


def test_centre_crop_is_the_published_evaluation(tmp_path: Path) -> None:
    write_images(tmp_path, 1, size=(90, 70))
    image = ImageList.scan(tmp_path).open(0)
    resized = image.resize((int(64 * 90 / 70), 64), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 56) / 2), round((resized.height - 56) / 2)
    expected = np.asarray(resized.crop((left, top, left + 56, top + 56)))
    crops = CentreCrops(ImageList.scan(tmp_path), 56, seed=0).__getitems__([0])
    assert np.array_equal(crops.images[0].numpy(), expected)


def test_policy_follows_the_settings() -> None:
    policy = view_policy(DataConfig(train=Path("photos"), recipe="v1", crop_scale=(0.3, 0.9), blur_sigma=(0.2, 1.0)))
    assert policy.grey_first and policy.blur_probability == 0
    assert (policy.scale, policy.blur_sigma) == ((0.3, 0.9), (0.2, 1.0))
    assert view_policy(DataConfig(train=Path("photos"))) == ViewPolicy()


@pytest.mark.parametrize("size", [(1, 30000), (30000, 1), (7, 900)])
def test_centre_crop_of_a_long_strip_is_small_work(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "strip.png")
    asked: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(self: Image.Image, to: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        asked.append(to)
        return resize(self, to, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    crop = CentreCrops(ImageList.scan(tmp_path), 32, seed=0).__getitems__([0]).images
    assert crop.shape == (1, 32, 32, 3)
    assert asked
    assert max(max(to) for to in asked) <= 4 * 37

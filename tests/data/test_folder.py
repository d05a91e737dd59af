"""Image folders, decoding with replacement, batches and their order."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
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
from mgd_ssl.data.order import TrainingOrder, chunks, subset
from mgd_ssl.data.samples import Backend, CentreCrops, EvalBatch, PretrainBatch, TwoViews, chosen_backend, view_policy
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.data.views_device import finish_views
from mgd_ssl.errors import UserError
from moco import ViewKey, ViewPolicy, draw_view, render_view
from tests.conftest import write_images

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def names(images: ImageList) -> list[str]:
    return [images.name(i) for i in range(len(images))]


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


# scanning


def test_scan_finds_nested_images_in_the_order_of_their_paths(tmp_path: Path) -> None:
    wanted = ["b/x.JPG", "a/deep/er/y.jpeg", "a.png", "Ünï/日本 語.webp", "a/z.PnG", "c/two words.tiff"]
    touch(tmp_path, *wanted, "notes.txt", ".hidden.jpg", "a/.DS_Store", "noextension", "a/list.jpg.txt")
    images = ImageList.scan(tmp_path)
    assert names(images) == sorted(wanted, key=os.fsencode)
    assert sorted(images.ignored) == [".hidden.jpg", "a/.DS_Store", "a/list.jpg.txt", "noextension", "notes.txt"]
    assert len(images) == 6 and images.root == tmp_path


def test_names_survive_packing() -> None:
    originals = ["é/ü.jpg", "a.jpg", "a/b.jpg", "日本.jpg", os.fsdecode(b"\xff\xfe.jpg"), "x" * 200 + ".jpg"]
    assert names(ImageList(Path("root"), originals)) == sorted(originals, key=os.fsencode)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "real", "1.jpg", "sub/2.jpg")
    touch(tmp_path / "elsewhere", "3.jpg")
    (tmp_path / "real" / "sub" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "other").symlink_to(tmp_path / "elsewhere")
    assert names(ImageList.scan(tmp_path / "real")) == ["1.jpg", "other/3.jpg", "sub/2.jpg"]


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing is not a folder: pass a folder of images"):
        ImageList.scan(tmp_path / "missing")
    with pytest.raises(UserError, match=r"holds no image \(it is empty\)"):
        ImageList.scan(tmp_path)
    touch(tmp_path, "a.txt", "b.csv")
    with pytest.raises(UserError, match=r"holds no image \(2 other files, first [ab].(txt|csv)\)"):
        ImageList.scan(tmp_path)
    with pytest.raises(UserError, match=r"a.txt is not a folder"):
        ImageList.scan(tmp_path / "a.txt")


def test_fingerprint_is_that_of_the_names() -> None:
    def fingerprint(*files: str) -> str:
        return ImageList(Path("root"), files).fingerprint()

    assert fingerprint("a.jpg", "b.jpg") == fingerprint("b.jpg", "a.jpg")
    different = {
        fingerprint("a.jpg", "b.jpg"),
        fingerprint("a.jpg", "c.jpg"),
        fingerprint("a.jpg"),
        fingerprint("a.jpgb.jpg"),
        fingerprint("a.jp", "gb.jpg"),
    }
    assert len(different) == 5


def test_labels_are_the_first_folders(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.jpg", "cat/deep/2.jpg", "cat/3.jpg", "emu/4.jpg")
    labels, classes = ImageList.scan(tmp_path).labels()
    assert classes == ["cat", "dog", "emu"]
    assert labels.tolist() == [0, 0, 1, 2]


def test_labels_need_two_class_folders_and_no_loose_image(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg")
    with pytest.raises(UserError, match="holds the single class 'cat': labels need at least two folders"):
        ImageList.scan(tmp_path).labels()
    touch(tmp_path, "dog/1.jpg", "loose.jpg")
    with pytest.raises(UserError, match=r"loose.jpg has no label: put images into one folder a class"):
        ImageList.scan(tmp_path).labels()


# odd files


def pixels(channels: int = 3, depth: type = np.uint8) -> np.ndarray:
    shape = (30, 44) if channels == 1 else (30, 44, channels)
    return np.random.default_rng(0).integers(0, np.iinfo(depth).max, shape, dtype=depth)


def palette_with_transparency(path: Path) -> None:
    image = Image.fromarray(pixels()).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(path, transparency=bytes(range(0, 256, 2)))


def animation(path: Path) -> None:
    frames = [Image.fromarray(np.roll(pixels(), i, axis=0)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


ODD: dict[str, Callable[[Path], None]] = {
    "cmyk.jpg": lambda path: Image.fromarray(pixels(4), mode="CMYK").save(path),
    "grey.jpg": lambda path: Image.fromarray(pixels(1)).save(path),
    "palette.png": palette_with_transparency,
    "alpha.png": lambda path: Image.fromarray(pixels(4)).save(path),
    "sixteen.png": lambda path: Image.fromarray(pixels(1, np.uint16)).save(path),
    "animated.gif": animation,
    "really_a_png.jpg": lambda path: Image.fromarray(pixels()).save(path, format="PNG"),
    "bits.pbm": lambda path: Image.fromarray(pixels(1)).convert("1").save(path),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_become_rgb(tmp_path: Path, name: str) -> None:
    ODD[name](tmp_path / name)
    images = ImageList.scan(tmp_path)
    opened = images.open(0)
    assert opened.mode == "RGB" and opened.size == (44, 30)
    if name not in ("palette.png", "alpha.png", "sixteen.png"):  # those are in data/test_decode.py
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(np.asarray(opened), np.asarray(image.convert("RGB")))
    crops = CentreCrops(images, 32, seed=0).__getitems__([0])
    assert crops.images.shape == (1, 32, 32, 3) and not crops.unreadable


# batches


def two_views(root: Path, seed: int = 0, backend: Backend = "reference") -> TwoViews:
    return TwoViews(ImageList.scan(root), ViewPolicy(), 32, seed, backend)


def keys(epoch: int, count: int = 20) -> list[tuple[int, int]]:
    return [(epoch, index) for index in range(count)]


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


def finished(batch: PretrainBatch) -> torch.Tensor:
    """[2, N, H, W, 3], whoever had to finish the views."""
    views = torch.stack([batch.im_q, batch.im_k])
    if batch.rows is None:
        return views
    return torch.stack([finish_views(*pair, 2.0) for pair in zip(views, batch.rows, strict=True)])


@pytest.mark.parametrize("backend", ["cpu", "device"])
def test_backends_render_the_same_views_up_to_rounding(photos: Path, backend: Backend) -> None:
    expected = two_views(photos, seed=5).__getitems__(keys(4))
    batch = two_views(photos, 5, backend).__getitems__(keys(4))
    assert (batch.rows is None) == (backend == "cpu")
    assert batch.unreadable == expected.unreadable
    assert (finished(batch).int() - finished(expected).int()).abs().float().mean() < 1.7


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("backend", ["cpu", "device"])
def test_odd_files_are_seen_as_under_the_reference(tmp_path: Path, name: str, backend: Backend) -> None:
    ODD[name](tmp_path / name)
    expected = two_views(tmp_path).__getitems__(keys(0, 1) * 4)
    batch = two_views(tmp_path, backend=backend).__getitems__(keys(0, 1) * 4)
    assert not batch.unreadable and not expected.unreadable
    assert (finished(batch).int() - finished(expected).int()).abs().float().mean() < 2 * 1.7  # pure noise


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


# order


def order(num_images: int = 103, batch: int = 12, epochs: int = 3, seed: int = 0, **where: int) -> TrainingOrder:
    place = {"first_step": 0, "rank": 0, "world_size": 1, **where}
    return TrainingOrder(num_images, batch, epochs, seed, **place)


def test_every_epoch_is_a_permutation_without_its_rest() -> None:
    steps = list(order())
    assert len(steps) == len(order()) == 3 * (103 // 12)
    firsts = []
    for epoch in range(3):
        seen = [key for step in steps[epoch * 8 : epoch * 8 + 8] for key in step]
        assert all(key[0] == epoch for key in seen)
        assert len({index for _, index in seen}) == len(seen) == 96
        assert all(0 <= index < 103 for _, index in seen)
        firsts.append([index for _, index in seen])
    assert firsts[0] != firsts[1] != firsts[2] != sorted(firsts[2])
    assert list(order()) == steps != list(order(seed=1))


def test_epochs_that_divide_evenly_hold_every_image_once() -> None:
    seen = [index for step in order(num_images=60, epochs=1) for _, index in step]
    assert sorted(seen) == list(range(60))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
def test_parts_of_the_ranks_tile_the_batch_of_one_process(world_size: int) -> None:
    parts = [list(order(rank=rank, world_size=world_size)) for rank in range(world_size)]
    together = [[key for part in step for key in part] for step in zip(*parts, strict=True)]
    assert together == list(order())


@pytest.mark.parametrize("first_step", [0, 1, 7, 8, 9, 16, 23, 24])
def test_starting_later_yields_the_tail(first_step: int) -> None:
    late = order(first_step=first_step)
    assert list(late) == list(order())[first_step:]
    assert len(late) == 24 - first_step


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    assert list(order(epochs=5))[:24] == list(order())


# choosing


def test_subset_is_sorted_unique_and_depends_on_seed_and_purpose() -> None:
    chosen = subset(1000, 100, seed=0, purpose="bank")
    assert chosen.tolist() == sorted(set(chosen.tolist())) and len(chosen) == 100
    assert chosen.min() >= 0 and chosen.max() < 1000
    assert np.array_equal(chosen, subset(1000, 100, seed=0, purpose="bank"))
    assert not np.array_equal(chosen, subset(1000, 100, seed=1, purpose="bank"))
    assert not np.array_equal(chosen, subset(1000, 100, seed=0, purpose="matching"))


def test_subset_of_no_more_than_there_are() -> None:
    assert subset(10, 10, 0, "x").tolist() == subset(10, 99, 0, "x").tolist() == list(range(10))
    assert subset(1, 1, 0, "x").tolist() == [0]


def test_subset_is_even() -> None:
    counts = np.bincount(np.concatenate([subset(50, 10, seed, "x") for seed in range(2000)]), minlength=50)
    deviation = np.sqrt(2000 * 0.2 * 0.8)
    assert np.abs(counts - 400).max() < 4.5 * deviation


def test_chunks_are_consecutive() -> None:
    assert chunks(np.arange(7), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert chunks(np.arange(0), 3) == []


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

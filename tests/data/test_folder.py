"""Image folders: which files count, their order, labels and fingerprint, and odd ones."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.samples import Backend, CentreCrops
from mgd_ssl.errors import UserError
from tests.data.reading import finished, keys, names, touch, two_views

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def pixels(channels: int = 3, depth: type = np.uint8) -> np.ndarray:
    shape = (30, 44) if channels == 1 else (30, 44, channels)
    return np.random.default_rng(0).integers(0, np.iinfo(depth).max, shape, dtype=depth)


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


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("backend", ["cpu", "device"])
def test_odd_files_are_seen_as_under_the_reference(tmp_path: Path, name: str, backend: Backend) -> None:
    ODD[name](tmp_path / name)
    expected = two_views(tmp_path).__getitems__(keys(0, 1) * 4)
    batch = two_views(tmp_path, backend=backend).__getitems__(keys(0, 1) * 4)
    assert not batch.unreadable and not expected.unreadable
    assert (finished(batch).int() - finished(expected).int()).abs().float().mean() < 2 * 1.7  # pure noise

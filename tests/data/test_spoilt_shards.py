"""Shards that are damaged, missing, replaced or no source at all: told in one sentence."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mgd_ssl import UserError
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.data.sources import open_images
from tests.conftest import write_images
from tests.data.reading import names
from tests.data.tars import jpegs, write_tar

pytestmark = pytest.mark.usefixtures("cache")


# what can be wrong


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    second = content.index(b"0001.jpg")
    content[second : second + 20] = b"\xff" * 20
    path.write_bytes(content)


LONG = {f"{i:04d}.jpg": bytes(4000) for i in range(3)}


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut in an image": (lambda path: cut(write_tar(path, LONG), 2000), "is no whole tar file (unexpected end of data)"),
    "cut in a header": (lambda path: cut(path, 200), "is no whole tar file"),
    "end mark lost": (lambda path: cut(path, scan_end(path)), "is cut off after"),
    "damaged header": (damaged, "is no whole tar file (bad checksum)"),
    "damaged plain header": (lambda path: damaged(write_tar(path, LONG)), "is damaged after 4608 bytes"),
    "empty": (lambda path: path.write_bytes(b""), "is no whole tar file (empty file)"),
    "no tar": (lambda path: path.write_bytes(b"<html>" * 1000), "is no whole tar file"),
    "compressed": (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(2000)), "is compressed (gzip)"),
    "no image": (lambda path: write_tar(path, {"a.txt": b"?"}), "hold no image (1 other files, first part0.tar/a.txt)"),
    "nothing": (lambda path: write_tar(path, {}), "hold no image (they are empty)"),
    "gone": (lambda path: path.unlink(), "part0.tar is missing: restore it"),
    "no class": (lambda path: write_tar(path, {"a.jpg": b"x", "a.cls": b"\xff\xfe"}), "a.cls is no class"),
}


def scan_end(path: Path) -> int:
    with tarfile.open(path) as tar:
        tar.getmembers()
        return int(tar.offset)


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_shard_is_one_sentence(foreign: Path, kind: str) -> None:
    spoil, told = SPOILT[kind]
    shard = foreign / "part0.tar"
    (foreign / "list.txt").write_text("part0.tar\n")
    spoil(shard)
    with pytest.raises(UserError) as error:
        open_images(foreign / "list.txt")
    sentence = str(error.value)
    assert told in sentence and str(shard) in sentence and "\n" not in sentence


def test_what_is_no_source_is_told(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "odd.txt").write_text("a.zip\n")
    (tmp_path / "twice.txt").write_text("x.tar\nx.tar\n")
    for name, told in {
        "nowhere": "nowhere is not there: pass a folder of images, tar shards",
        "*.tar": "is not there: pass a folder",
        "0000.jpg": "is a single image",
        "binary": "neither .tar nor .arrow nor .parquet nor a list",
        "empty.txt": "lists no file",
        "odd.txt": "a.zip is none of .tar, .arrow, .parquet",
        "twice.txt": "x.tar is listed twice",
    }.items():
        with pytest.raises(UserError, match=told.replace("*", r"\*")):
            open_images(tmp_path / name)


def test_labels_that_are_missing_are_told(tmp_path: Path) -> None:
    image = jpegs(tmp_path, 1)[0]
    cases = (
        ({"a.jpg": image, "b.jpg": image}, "a.jpg has no label: put images into one folder"),
        ({"a.jpg": image, "a.cls": b"0", "b.jpg": image}, "b.jpg has no label: others have a .cls member"),
        ({"a.jpg": image, "a.cls": b"0"}, "holds the single class '0'"),
    )
    for number, (members, told) in enumerate(cases):
        with pytest.raises(UserError, match=told):
            open_images(write_tar(tmp_path / f"{number}.tar", members)).labels()


def test_a_missing_shard_of_a_pack_is_told_and_a_changed_one_scanned(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in (packed / "train").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert names(open_images(folder)) == names(open_images(packed / "train"))
    image = jpegs(tmp_path, 1)[0]
    write_tar(folder / "shard-000004.tar", {"cat/new.jpg": image})
    assert names(open_images(folder))[-1] == "shard-000004.tar/cat/new.jpg"
    (folder / "shard-000002.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000002.tar is missing \(1 of 5 shards\): restore it, or remove"):
        open_images(folder)
    (folder / "shards.index").unlink()
    assert len(open_images(folder)) == 31


def test_a_shard_replaced_while_it_is_read_is_told(tmp_path: Path) -> None:
    first, second = jpegs(tmp_path, 2)
    path = write_tar(tmp_path / "x.tar", {"a.jpg": first, "b.jpg": second})
    images = open_images(path)
    write_tar(path, {"longer.jpg": first + bytes(2000), "b.jpg": second})
    with pytest.raises(OSError, match="no longer the file that was indexed"):
        images.read(1)
    cut(path, 600)
    with pytest.raises(OSError, match="no longer the file that was indexed"):
        images.read(0)
    crops = CentreCrops(images, 16, seed=0)
    with pytest.raises(UserError, match="no longer the file that was indexed"):
        crops.__getitems__([0])
    assert names(open_images(write_tar(path, {"c.jpg": first}))) == ["x.tar/c.jpg"]


def test_a_shard_of_the_same_size_is_still_another_one(tmp_path: Path) -> None:
    first, second = jpegs(tmp_path, 2)
    path = write_tar(tmp_path / "x.tar", {"a.jpg": first})
    open_images(path)
    size = path.stat().st_size
    write_tar(path, {"b.jpg": second})
    assert path.stat().st_size == size  # tar files are padded
    assert names(open_images(path)) == ["x.tar/b.jpg"]


def test_a_folder_of_images_with_a_tar_beside_them_stays_a_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 2)
    write_tar(tmp_path / "x.tar", {"a.jpg": b"?"})
    images = open_images(tmp_path)
    assert isinstance(images, ImageList) and images.ignored == ["x.tar"]

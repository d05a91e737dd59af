"""`mgd-ssl pack`: shards as webdataset and tarfile see them, with the images and labels they were made of."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from mgd_ssl import UserError
from mgd_ssl.cli import main
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.pack import pack
from mgd_ssl.data.packing import reduced
from mgd_ssl.data.sources import open_images
from tests.conftest import write_images
from tests.data.packs import left_by, settings

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def samples(out: Path) -> list[dict[str, Any]]:
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


# what is in the shards


def test_shards_are_read_by_webdataset_and_tarfile(photos: Path, tmp_path: Path) -> None:
    result = pack(**settings(photos, tmp_path / "out"))
    assert (result.images, result.shards, result.left_out, result.classes) == (20, 4, 2, 2)
    whole = [path for path in sorted(photos.glob("*/*.jpg")) if path.name not in ("0004.jpg", "0009.jpg")]
    whole = sorted({*whole, photos / "cat" / "0009.jpg", photos / "dog" / "0004.jpg"})
    found = samples(tmp_path / "out")
    assert [sample["__key__"] for sample in found] == [f"{path.parent.name}/{path.stem}" for path in whole]
    assert [sample["jpg"] for sample in found] == [path.read_bytes() for path in whole]
    assert [int(sample["cls"]) for sample in found] == [int(path.parent.name == "dog") for path in whole]
    decoded = webdataset.WebDataset(str(tmp_path / "out" / "shard-000003.tar"), shardshuffle=False)
    image, label = next(iter(decoded.decode("pil").to_tuple("jpg", "cls")))
    assert image.size == (40, 36) and label == 1
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert all(member.isreg() and member.mtime == 0 for member in tar)
    assert sorted(left_by(tmp_path / "out")) == [
        *(f"shard-{i:06d}.tar" for i in range(4)),
        "shards.index",
        "skipped.jsonl",
    ]


def test_what_is_left_out_is_told(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["pack", str(photos), str(tmp_path / "out"), "--workers", "0", "--max-unreadable", "0.1"]
    assert main(args) == 0
    told = capsys.readouterr().out
    assert "20 images (2 classes) in 1 shards" in told and f"see {tmp_path / 'out' / 'skipped.jsonl'}" in told
    account = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert account == [
        {"file": "notes.txt", "ignored": "not an image's extension"},
        {"file": "cat/0004.jpg", "why": "UnidentifiedImageError: its format is none that Pillow knows"},
        {"file": "dog/0009.jpg", "why": "UnidentifiedImageError: its format is none that Pillow knows"},
    ]


@pytest.mark.usefixtures("cache")
def test_the_index_is_that_of_a_scan(photos: Path, tmp_path: Path) -> None:
    pack(**settings(photos, tmp_path / "out"))
    written = open_images(tmp_path / "out")
    scanned = open_images(tmp_path / "out" / "*.tar")
    assert written.index.path and scanned.fingerprint() == written.fingerprint()  # type: ignore[attr-defined]
    assert np.array_equal(written.index.rows, scanned.index.rows)  # type: ignore[attr-defined]
    assert written.labels()[1] == scanned.labels()[1] == ["cat", "dog"]
    assert np.array_equal(written.labels()[0], scanned.labels()[0])


def test_only_larger_images_are_reduced(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = {"a.png": (64, 96), "b.jpg": (31, 200), "c.jpg": (300, 20), "d.webp": (33, 32), "e.jpg": (1000, 33)}
    pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    for name, size in sizes.items():
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(tmp_path / "photos" / name, quality=95)
    pack(**settings(tmp_path / "photos", tmp_path / "out", short_side=32))
    source, packed = ImageList.scan(tmp_path / "photos"), open_images(tmp_path / "out")
    assert [packed.name(i).rpartition("/")[2] for i in range(5)] == ["a.jpg", "b.jpg", "c.jpg", "d.webp", "e.jpg"]
    assert [packed.open(i).size for i in range(5)] == [(32, 48), (31, 200), (300, 20), (33, 32), (970, 32)]
    for i in (1, 2, 3):
        assert packed.read(i) == source.read(i)
    for i in (0, 4):
        expected = np.asarray(source.open(i).resize(packed.open(i).size, Image.Resampling.LANCZOS), dtype=float)
        assert np.abs(np.asarray(packed.open(i), dtype=float) - expected).mean() < 5  # levels


def test_a_lower_quality_is_a_smaller_pack(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 3, size=(200, 180))
    sizes = [
        pack(**settings(tmp_path / "photos", tmp_path / str(quality), short_side=150, quality=quality)).megabytes
        for quality in (60, 95)
    ]
    assert sizes[0] < sizes[1]


def test_images_that_cannot_be_reduced_are_left_out(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "photos", 4, size=(90, 80))
    paths[1].write_bytes(paths[1].read_bytes()[:-150])  # its header is whole
    copied = pack(**settings(tmp_path / "photos", tmp_path / "copied"))
    assert (copied.images, copied.left_out) == (4, 0)
    reduced = pack(**settings(tmp_path / "photos", tmp_path / "reduced", short_side=50, max_unreadable=0.3))
    assert (reduced.images, reduced.left_out) == (3, 1)
    assert '"0001.jpg", "why": "OSError' in (tmp_path / "reduced" / "skipped.jsonl").read_text()


ODD = [
    "a.b.jpg", "a.c.jpg", "a.jpg", "a.png", "a%2Eb.jpg", "x.y/z.jpg", "é ü/日本.jpg", f"{'long' * 40}.jpg",
    os.fsdecode(b"\xff.jpg"), "a/b.jpg", "two\nlines.jpg", "J.JPEG",
]  # fmt: skip


def test_odd_names_stay_apart_and_in_order(tmp_path: Path) -> None:
    contents = [path.read_bytes() for path in write_images(tmp_path / "images", len(ODD))]
    for name, content in zip(ODD, contents, strict=True):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(content)
    pack(**settings(tmp_path / "photos", tmp_path / "out"))
    source, packed = ImageList.scan(tmp_path / "photos"), open_images(tmp_path / "out")
    assert [packed.read(i) for i in range(len(ODD))] == [source.read(i) for i in range(len(ODD))]
    members = [packed.name(i).partition("/")[2] for i in range(len(ODD))]
    assert {"a%2Eb.jpg", "a%252Eb.jpg", "a%2Ejpg.jpg", "a%2Epng.png", "x.y/z.jpg", "two\nlines.jpg"} <= set(members)
    readable = [sample for sample in members if "\udcff" not in sample]
    found = samples(tmp_path / "out")
    assert len(found) == len(ODD) and len(readable) == len(ODD) - 1
    assert {sample["__key__"] for sample in found} >= {name.rpartition(".")[0] for name in readable}


# labels


def test_labels_are_written_when_every_image_has_one(photos: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "loose", 2)
    for name, source, labels, written in (
        ("auto", photos, "auto", True), ("yes", photos, "yes", True), ("no", photos, "no", False),
        ("unlabelled", tmp_path / "loose", "auto", False),
    ):  # fmt: skip
        result = pack(**settings(source, tmp_path / name, labels=labels))
        assert (result.classes > 0) == all("cls" in sample for sample in samples(tmp_path / name)) == written
    with pytest.raises(UserError, match=r"loose/0000.jpg has no label"):
        pack(**settings(tmp_path / "loose", tmp_path / "refused", labels="yes"))
    assert not (tmp_path / "refused").exists()


def test_shards_can_be_packed_again(photos: Path, tmp_path: Path) -> None:
    pack(**settings(photos, tmp_path / "out"))
    again = pack(**settings(tmp_path / "out", tmp_path / "again", shard_images=7))
    assert (again.images, again.shards, again.classes) == (20, 3, 2)
    one, two = open_images(tmp_path / "out"), open_images(tmp_path / "again")
    assert [one.read(i) for i in range(20)] == [two.read(i) for i in range(20)]
    assert one.labels()[1] == two.labels()[1] and np.array_equal(one.labels()[0], two.labels()[0])
    assert two.name(19) == "shard-000002.tar/dog/000000019.jpg"


def test_an_image_of_too_many_pixels_is_left_out(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 3)
    Image.new("1", (500, 500)).save(tmp_path / "photos" / "large.png")
    result = pack(**settings(tmp_path / "photos", tmp_path / "out", max_pixels=40 * 36, max_unreadable=0.3))
    assert (result.images, result.left_out) == (3, 1)
    assert "it has 500 x 500 pixels, and max_pixels is 1440" in (tmp_path / "out" / "skipped.jsonl").read_text()


def test_too_many_unreadable_images_stop_a_pack(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], reference: dict[str, bytes]
) -> None:
    args = ["pack", str(photos), str(tmp_path / "out"), "--workers", "0", "--shard-images", "6", "--max-unreadable"]
    assert main([*args, "0.05"]) == 3
    told = capsys.readouterr().err
    assert told == (
        f"mgd-ssl: 2 of 22 images in {photos} are unreadable, last dog/0009.jpg (UnidentifiedImageError: its format is "
        "none that Pillow knows): mend them, or raise --max-unreadable above 0.05\n"
    )
    assert main([*args, "0.1"]) == 0  # the shards before it are kept
    assert left_by(tmp_path / "out") == reference


def test_what_cannot_be_packed_is_told(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not there: pass a folder of images"):
        pack(**settings(tmp_path / "nowhere", tmp_path / "out"))
    with pytest.raises(ValueError, match="out is not set: pass two folders"):
        pack(images=photos)
    with pytest.raises(UserError, match="is not empty and holds no run"):
        pack(**settings(photos, photos))
    for path in photos.glob("*/*.jpg"):
        path.write_bytes(b"?")
    with pytest.raises(UserError, match=r"no image in .* can be read"):
        pack(**settings(photos, tmp_path / "out", max_unreadable=1.0))


def test_a_folder_with_another_pack_is_refused(photos: Path, tmp_path: Path) -> None:
    pack(**settings(photos, tmp_path / "out"))
    with pytest.raises(UserError, match=r"out holds another pack \(short_side: None -> 20\): restore them"):
        pack(**settings(photos, tmp_path / "out", short_side=20))
    write_images(photos / "emu", 1)
    with pytest.raises(UserError, match=r"out holds another pack \(images: "):
        pack(**settings(photos, tmp_path / "out"))


def test_reduced_images_are_what_pillow_makes_of_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    content = reduced(Image.fromarray(pixels), 30, 95)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((68, 30), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=95)
    assert content == buffer.getvalue()

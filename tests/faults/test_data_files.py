"""Damaged and hostile shards, indexes and Arrow files: they are read, or named in a sentence."""

import json
import shutil
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import webdataset
from PIL import Image
from pyarrow import parquet

from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.hugging_face import ArrowImages, saved_files
from mgd_ssl.data.images import Images, Unreadable
from mgd_ssl.data.pack import pack
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.data.shard_scan import scan_shard
from mgd_ssl.data.shards import ShardImages
from mgd_ssl.data.sources import open_images
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.errors import UserError
from tests.conftest import write_images
from tests.faults.mutations import encoded, mutated, survived
from tests.runs import DEADLINE

pytestmark = pytest.mark.usefixtures("cache")


# shards and their index


def write_shard(path: Path) -> Path:
    """A shard as webdataset writes it."""
    rng = np.random.default_rng(0)
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(6):
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            writer.write({"__key__": f"{i % 2}/{i:04d}", "png": encoded(image, "PNG"), "cls": i % 2})
    return path


def outcome(work: Callable[[], Any]) -> str:
    """`whole`, or `told` where it is one sentence for the user."""
    try:
        work()
    except UserError:
        return "told"
    return "whole"


def read_all(images: Images) -> None:
    images.fingerprint()
    for index in range(len(images)):
        images.name(index)
    CentreCrops(images, 8, seed=0).__getitems__(range(len(images)))  # counts what is unreadable
    images.labels()


def scan_all(folder: Path, seed: int, cases: int) -> dict[str, int]:
    rng, whole = np.random.default_rng(seed), (folder / "x.tar").read_bytes()
    counts = {"whole": 0, "told": 0}
    for number in range(cases):
        data = bytearray(mutated(whole, [whole], rng))
        if number % 2:  # a header with a valid checksum
            header = 512 * int(rng.integers(0, len(whole) // 512))
            data = bytearray(whole)
            field = int(rng.choice([124, 156, 345]))  # size, type, prefix
            data[header + field : header + field + 12] = hostile(rng)
            mended = sum(data[header : header + 148]) + 8 * 32 + sum(data[header + 156 : header + 512])
            data[header + 148 : header + 156] = b"%06o\0 " % mended
        path = folder / f"{number}.tar"
        path.write_bytes(data)
        counts[outcome(lambda path=path: read_all(ShardImages(folder, scan_shard(path, path.name))))] += 1  # type: ignore[misc]
        path.unlink()
    return counts


def hostile(rng: np.random.Generator) -> bytes:
    """A field of a tar header: a size that is negative, absurd or no number, or another type."""
    fields = [b"\xff" * 12, b"\xff" * 10 + b"\xfe\0", b"\x80" + b"\x7f" * 11, b"\x80" + bytes(6) + b"\xff" * 5,
              bytes(12), b"77777777777\0", b"-0000001000\0", b"L" + bytes(11), b"x" + bytes(11), b"S" + b"7" * 11,
              rng.bytes(12)]  # fmt: skip
    return fields[rng.integers(len(fields))]


def test_mutated_shards_are_read_or_named(tmp_path: Path, rounds: int) -> None:
    write_shard(tmp_path / "x.tar")
    counts = survived(scan_all, tmp_path, 2, 300 * rounds, patience=DEADLINE * rounds)
    assert min(counts.values()) > 10


def test_a_mutated_index_of_a_pack_is_noticed_and_the_shards_are_scanned(tmp_path: Path, rounds: int) -> None:
    write_images(tmp_path / "photos" / "a", 3)
    write_images(tmp_path / "photos" / "b", 3)
    pack(images=tmp_path / "photos", out=tmp_path / "out", workers=0, shard_images=4)
    expected = open_images(tmp_path / "out")
    index = tmp_path / "out" / "shards.index"
    whole, rng = index.read_bytes(), np.random.default_rng(3)
    for content in [b"", whole[:-1], whole + b"\0", *(mutated(whole, [whole], rng) for _ in range(60 * rounds))]:
        index.unlink()  # the open one is mapped
        index.write_bytes(content)
        found = open_images(tmp_path / "out")
        assert found.fingerprint() == expected.fingerprint()
        assert isinstance(found, ShardImages)
        assert (found.index.path == index) == (content == whole)
        assert [found.read(i) for i in range(6)] == [expected.read(i) for i in range(6)]
        assert found.labels()[1] == ["a", "b"]


# Hugging Face data sets


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as `datasets` writes it, and as Parquet."""
    root = tmp_path_factory.mktemp("saved")
    paths = write_images(root / "photos", 6)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [str(path) for path in paths], "label": [0, 1] * 3}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.save_to_disk(root / "arrow")
    datasets.DatasetDict({"train": dataset}).save_to_disk(root / "dict")
    table = datasets.load_from_disk(root / "arrow").with_format("arrow")[:]
    parquet.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), root / "x.parquet")
    return root


def open_mutated(path: Path, whole: bytes, seed: int, cases: int) -> dict[str, int]:
    rng, counts = np.random.default_rng(seed), {"whole": 0, "told": 0}
    for number in range(cases):
        content = bytearray(mutated(whole, [whole], rng))
        if number % 2:  # where positions and lengths are
            content = bytearray(whole)
            place = int(rng.integers(len(whole) // 4)) * 4
            content[place : place + 4] = struct.pack("<i", int(rng.choice([-1, 2**31 - 1, -(2**31), 10**6, 7])))
        case = path.with_stem(f"case{number}")
        case.write_bytes(content)
        counts[outcome(lambda case=case: read_all(ArrowImages([case])))] += 1  # type: ignore[misc]
        case.unlink()
    return counts


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_mutated_arrow_and_parquet_files_are_read_or_named(saved: Path, tmp_path: Path, rounds: int, kind: str) -> None:
    source = next((saved / "arrow").glob("*.arrow")) if kind == "arrow" else saved / "x.parquet"
    counts = survived(
        open_mutated, tmp_path / f"x.{kind}", source.read_bytes(), 4, 200 * rounds, patience=DEADLINE * rounds
    )
    assert min(counts.values()) > 5


def odd_values(value: Any) -> Iterator[Any]:
    """A JSON value with one part replaced at a time."""
    yield from (None, 1, "x", "../x", "a\0b", [], {}, [None], [1], [[]])
    inside = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, part in inside:
        for odd in odd_values(part):
            copy = value.copy()
            copy[key] = odd
            yield copy


@pytest.mark.parametrize("name", ["arrow/state.json", "dict/dataset_dict.json"])
def test_odd_json_of_a_data_set_is_named(saved: Path, tmp_path: Path, rounds: int, name: str) -> None:
    shutil.copytree((saved / name).parent, tmp_path / "copy")
    path = tmp_path / "copy" / Path(name).name
    whole, rng = path.read_bytes(), np.random.default_rng(5)
    cases = [json.dumps(value).encode() for value in odd_values(json.loads(whole))]
    odd: list[bytes] = [*cases, b"", b"[" * 10**5, *(mutated(whole, [whole], rng) for _ in range(100 * rounds))]
    for content in odd:
        path.write_bytes(content)
        told = outcome(lambda: read_all(ArrowImages(saved_files(path.parent))))
        assert told == "told" or name.startswith("arrow")


# the account of files passed over


def test_a_mutated_account_is_mended(tmp_path: Path, rounds: int) -> None:
    path, images = tmp_path / "skipped.jsonl", ImageList(tmp_path, [f"{i}.jpg" for i in range(50)], ["a.txt"])
    first = SkippedFiles(path, images, 1.0)
    first.note([Unreadable(f"{i}.jpg", "OSError: truncated") for i in range(20)])
    first.share()
    whole, rng = path.read_bytes(), np.random.default_rng(6)
    for content in [b"", b"\xff\n", b"[]\n", *(mutated(whole, [whole], rng) for _ in range(100 * rounds))]:
        path.write_bytes(content)
        account = SkippedFiles(path, images, 1.0)
        account.note([Unreadable(f"{i}.jpg", "OSError: truncated") for i in range(20)])
        account.share()
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        assert {f"{i}.jpg" for i in range(20)} <= {entry["file"] for entry in entries if "why" in entry}
        assert [entry["file"] for entry in entries if "ignored" in entry] == ["a.txt"]


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("size", [-512, -1024, -(2**40), 2**50, 2**62])
def test_members_of_absurd_sizes_end_a_scan(tmp_path: Path, size: int, format: Any) -> None:
    whole = write_shard(tmp_path / "x.tar").read_bytes()[:-10240].rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    member = tarfile.TarInfo("a/9999.png")
    if format == tarfile.PAX_FORMAT:
        member.pax_headers = {"size": str(size)}
    else:
        member.size = size
    (tmp_path / "x.tar").write_bytes(whole + member.tobuf(format) + bytes(2048))
    with pytest.raises(UserError, match=r"x.tar is no whole tar file \("):
        scan_shard(tmp_path / "x.tar", "x.tar")

"""Damaged and hostile images, shards, indexes and Arrow files: they decode, are counted as unreadable, or are named in
a sentence; nothing hangs, crashes or takes up much memory."""

import io
import json
import os
import resource
import shutil
import signal
import struct
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
import webdataset
from PIL import Image
from pyarrow import parquet

from mgd_ssl import TrainingError, pretrain
from mgd_ssl.bench.photographs import photograph
from mgd_ssl.cli import main
from mgd_ssl.config import Decoding
from mgd_ssl.data.decode import decode, decode_pixels
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.hugging_face import ArrowImages, saved_files
from mgd_ssl.data.images import Images, Unreadable
from mgd_ssl.data.pack import pack
from mgd_ssl.data.samples import Backend, CentreCrops, TwoViews
from mgd_ssl.data.shard_scan import scan_shard
from mgd_ssl.data.shards import ShardImages
from mgd_ssl.data.sources import open_images
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.errors import UserError
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from moco import ViewPolicy
from tests.conftest import write_images
from tests.runs import DEADLINE, flags, processes, tiny

pytestmark = pytest.mark.usefixtures("cache")

SMALL = Decoding(max_pixels=2**18)
MOST_MEMORY = 400  # MB that a process may grow by
PHOTO = photograph(0, 61, 47)


# what is mutated


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def see_through() -> Image.Image:
    image = PHOTO.copy()
    image.putalpha(PHOTO.convert("L"))
    return image


def deep(kind: type) -> Image.Image:
    return Image.fromarray((np.asarray(PHOTO.convert("L")).astype(np.float64) * 200).astype(kind))


def seeds() -> list[bytes]:
    """Files of all formats and kinds of pixels that Pillow can write."""
    clear, palette, frames = see_through(), PHOTO.convert("P"), [PHOTO.rotate(90), PHOTO.rotate(180)]
    found = [encoded(PHOTO, "JPEG", **options) for options in ({}, {"progressive": True}, {"subsampling": "4:4:4"})]
    found += [encoded(PHOTO.convert(mode), "JPEG") for mode in ("L", "CMYK")]
    found += [encoded(image, "PNG") for image in (PHOTO, clear, clear.convert("LA"), deep(np.uint16), palette)]
    found += [encoded(palette, "PNG", transparency=bytes(range(200))), encoded(palette, "PNG", transparency=3)]
    found += [encoded(PHOTO, "PNG", transparency=(1, 2, 3)), encoded(PHOTO.convert("1"), "PNG")]
    found += [encoded(PHOTO, "GIF", save_all=True, append_images=frames), encoded(palette, "GIF", transparency=5)]
    found += [encoded(PHOTO, "MPO", save_all=True, append_images=frames)]
    found += [encoded(image, "WEBP", lossless=lossless) for image in (PHOTO, clear) for lossless in (True, False)]
    for image in (PHOTO, clear, palette.convert("PA"), deep(np.uint16), deep(np.int32), deep(np.float32)):
        found += [encoded(image, "TIFF", compression=kind) for kind in (None, "tiff_lzw", "tiff_adobe_deflate")]
    found += [encoded(PHOTO, "TIFF", compression=kind) for kind in ("jpeg", "packbits")]
    found += [encoded(PHOTO.convert("1"), "TIFF", compression="group4")]
    found += [encoded(PHOTO, form) for form in ("BMP", "PPM", "TGA", "PCX", "ICO", "JPEG2000", "AVIF")]
    found += [encoded(clear, form) for form in ("JPEG2000", "AVIF")] + [encoded(deep(np.uint16), "JPEG2000")]
    return [
        *found,
        b"Pf 61 47 -1.0\n" + deep(np.float32).tobytes(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ]


def mutated(content: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes and lengths overwritten, parts cut out, doubled or taken from another file."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        # the start of a file is where its sizes are
        at = int(rng.integers(min(len(data), 200)) if rng.random() < 0.6 else rng.integers(len(data)))
        kind = rng.integers(6)
        if kind == 0:
            data[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            data[at : at + 1] = rng.bytes(1)
        elif kind == 2:
            extreme = int(rng.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]))
            data[at : at + 4] = struct.pack(rng.choice(["<I", ">I"]), extreme)
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            data[at:at] = others[rng.integers(len(others))][at : at + int(rng.integers(1, 64))]
        else:
            del data[max(at, 4) :]
    return bytes(data)


class InMemory(Images):
    """Files that are nowhere."""

    def __init__(self, files: list[bytes]) -> None:
        self.files, self.root, self.ignored, self.decoding = files, Path("/"), [], SMALL

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> bytes:
        return self.files[index]

    def labels(self) -> tuple[np.ndarray, list[str]]:
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError

    def state(self) -> str:
        raise NotImplementedError


# a process of its own, which may crash or hang


def reported(queue: Any, work: Callable[..., Any], *args: Any) -> None:
    """Do the work with a report of what came out of it, and of the memory it took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put((work(*args), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def survived(work: Callable[..., Any], *args: Any, patience: float = DEADLINE) -> Any:
    """What `work` returns, done in another process, which neither crashes nor hangs nor grows."""
    queue = processes.Queue()
    child = processes.Process(target=reported, args=(queue, work, *args))
    child.start()
    deadline = time.monotonic() + patience
    while child.is_alive() and queue.empty() and time.monotonic() < deadline:
        time.sleep(0.01)
    if queue.empty():
        child.join(1)
        told = "it hangs" if child.exitcode is None else f"it ended with {child.exitcode}"
        child.kill()
        pytest.fail(told)
    result, megabytes = queue.get()
    child.join()
    assert megabytes < MOST_MEMORY
    return result


# images


def decode_all(seed: int, cases: int) -> dict[str, int]:
    """Both decoders on mutated files; how many decode and how many do not."""
    rng, files = np.random.default_rng(seed), seeds()
    counts = {"decoded": 0, "unreadable": 0}
    for number in range(cases):
        content = mutated(files[number % len(files)], files, rng)
        outcomes = []
        for how in (decode, decode_pixels):
            try:
                pixels = np.asarray(how(content, SMALL))
                assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
                assert 0 < pixels.shape[0] * pixels.shape[1] <= SMALL.max_pixels
                outcomes.append(pixels.tobytes())
            except AssertionError:
                raise
            except Exception as error:
                outcomes.append(type(error).__name__.encode())
        assert outcomes[0] == outcomes[1], number
        counts["decoded" if len(outcomes[0]) > 100 else "unreadable"] += 1
    return counts


def test_mutated_images_decode_or_are_refused_alike_by_both_decoders(rounds: int) -> None:
    cases = 600 * rounds
    counts = survived(decode_all, 0, cases, patience=DEADLINE * rounds)
    assert sum(counts.values()) == cases and min(counts.values()) > cases // 10  # both happen


def test_every_seed_but_a_program_decodes() -> None:
    refused = []
    for content in seeds():
        try:
            decode(content, SMALL)
        except Exception:
            refused.append(content[:4])
    assert refused == [b"%!PS"]


def batches_of(seed: int, cases: int) -> list[int]:
    """Crops and views of mutated files, and how many of those were counted as unreadable, by each way to see them."""
    rng, files = np.random.default_rng(seed), seeds()
    images = InMemory([mutated(files[i % len(files)], files, rng) for i in range(cases)] + files[:1] * (cases // 4))
    found = []
    sets: list[CentreCrops | TwoViews] = [CentreCrops(images, 16, seed=0)]
    backends: list[Backend] = ["reference", "cpu", "device"]
    sets += [TwoViews(images, ViewPolicy(), 16, 0, backend) for backend in backends]
    for dataset in sets:
        keys: Any = range(cases) if isinstance(dataset, CentreCrops) else [(0, i) for i in range(cases)]
        found.append(len({failure.name for failure in dataset.__getitems__(keys).unreadable}))
    return found


def test_batches_of_mutated_images_are_whole(rounds: int) -> None:
    counts = survived(batches_of, 1, 150 * rounds, patience=DEADLINE * rounds)
    assert len(set(counts)) == 1 and 0 < counts[0] < 150 * rounds


def claims() -> list[bytes]:
    """Small files whose headers claim very many pixels."""
    png = bytearray(encoded(PHOTO, "PNG"))
    png[16:24] = struct.pack(">II", 60000, 60000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    jpeg = bytearray(encoded(PHOTO, "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 65000, 65000)
    gif = bytearray(encoded(PHOTO, "GIF"))
    gif[6:10] = struct.pack("<HH", 65000, 65000)
    bmp = bytearray(encoded(PHOTO, "BMP"))
    bmp[18:26] = struct.pack("<ii", 30000, 30000)
    ppm = b"P6 40000 40000 255\n" + bytes(100)
    blank = Image.new("1", (12000, 12000))
    return [bytes(png), bytes(jpeg), bytes(gif), bytes(bmp), ppm, encoded(blank, "PNG"), encoded(blank, "TIFF")]


def refuse_all(files: list[bytes]) -> list[str]:
    told = []
    for content in files:
        for how in (decode, decode_pixels):
            try:
                how(content)
            except Exception as error:
                told.append(str(error))
    return told


def test_images_that_claim_too_many_pixels_take_no_memory() -> None:
    told = survived(refuse_all, files := claims())
    assert len(told) == 2 * len(files)
    assert all("pixels" in sentence for sentence in told)


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


# what is no file


@pytest.fixture
def alarm() -> Iterator[None]:
    """What waits for ten seconds waits for ever."""

    def late(number: int, frame: object) -> None:
        pytest.fail("it hangs")  # no Exception, which would be an unreadable image

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 10)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.usefixtures("alarm")
def test_pipes_devices_and_sockets_among_images_are_unreadable(tmp_path: Path) -> None:
    write_images(tmp_path, 6)
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, target in {"random": "/dev/urandom", "pipe_too": "pipe.jpg", "loop": "loop.jpg"}.items():
        (tmp_path / f"{name}.jpg").symlink_to(target)
    images = ImageList.scan(tmp_path)
    files = [images.name(i) for i in range(len(images))]
    assert {"pipe.jpg", "pipe_too.jpg", "random.jpg", "loop.jpg"} < set(files)
    images.state()
    crops = CentreCrops(images, 16, seed=0).__getitems__(range(len(images)))
    assert {failure.name for failure in crops.unreadable} == {name for name in files if not name.startswith("0")}
    assert sum("it is no regular file" in failure.why for failure in crops.unreadable) >= 3


@pytest.mark.usefixtures("alarm")
def test_paths_in_rows_stay_in_the_folder_of_the_data_set(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data" / "photos", tmp_path / "outside"
    paths = write_images(inside, 2), write_images(outside, 1)
    os.mkfifo(inside / "pipe.jpg")
    (inside / "link.jpg").symlink_to(paths[1][0])  # the owner of the folder put it there
    for i, where in enumerate(("photos/0000.jpg", str(paths[0][1]), "photos/link.jpg", "./photos/../photos/0001.jpg")):
        images = rows_at(tmp_path / "data", [where])
        assert images.read(0) == (tmp_path / "data" / where).read_bytes(), i
    for where in (
        str(paths[1][0]),
        "../outside/0000.jpg",
        "photos/../../outside/0000.jpg",
        "/etc/hostname",
        "",
        ".",
        "/",
    ):
        with pytest.raises(OSError, match="leads out of the data set's folder"):
            rows_at(tmp_path / "data", [where]).read(0)
    with pytest.raises(OSError, match="it is no regular file"):
        rows_at(tmp_path / "data", ["photos/pipe.jpg"]).read(0)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "data")
    rows_at(link, [str(paths[0][1])]).read(0)


def rows_at(folder: Path, where: list[str]) -> Images:
    """A data set whose rows hold paths alone."""
    table = pyarrow.table({"image": [{"bytes": None, "path": path} for path in where]}, schema=ROWS)
    path = folder / f"{len(list(folder.glob('*.parquet')))}.parquet"
    parquet.write_table(table, path)
    return ArrowImages([path])


ROWS = pyarrow.schema([("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))])


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("name", ["shards.index", "state.json", "dataset_dict.json", "x.tar", "x.arrow", "x.txt"])
def test_pipes_in_place_of_other_files_are_told(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    os.mkfifo(folder / name)
    if name == "state.json":
        (folder / "dataset_info.json").write_text("{}")
    for path in (folder, folder / name):
        with pytest.raises(UserError):
            open_images(path)


def read_large(folder: Path) -> list[str]:
    """Images whose files have gigabytes, in all kinds of sources."""
    found = []
    for images in (
        ImageList.scan(folder / "photos"),
        rows_at(folder, ["photos/large.jpg"]),
        open_images(folder / "x.tar"),
    ):
        try:
            images.read(len(images) - 1)
        except OSError as error:
            found.append(str(error))
    return found


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "large.jpg").touch()
    os.truncate(tmp_path / "photos" / "large.jpg", 5 * 10**9)  # sparse: it takes no room
    member = tarfile.TarInfo("large.jpg")
    member.size = 5 * 10**9
    (tmp_path / "x.tar").write_bytes(member.tobuf())
    os.truncate(tmp_path / "x.tar", 512 + -(-member.size // 512) * 512 + 1024)
    told = survived(read_large, tmp_path)
    assert len(told) == 3
    assert all("it has 5000000000 bytes, and no image of max_pixels has more than " in line for line in told)


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


# data that vanish


def test_data_that_vanish_while_training_end_it_with_3(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(image_folder, tmp_path / "photos")
    update = Update.__call__

    def unmounted(self: Update, inputs: Any, finished: int) -> StepOutput:
        if finished == 3:
            shutil.rmtree(tmp_path / "photos")
        return update(self, inputs, finished)

    monkeypatch.setattr(Update, "__call__", unmounted)
    arguments = ["pretrain", *flags(tiny(tmp_path / "photos", tmp_path / "run"))]
    assert main(arguments) == 3
    assert f"{tmp_path / 'photos' / 'train'} is gone: bring it back, then run the" in capsys.readouterr().err
    monkeypatch.setattr(Update, "__call__", update)
    assert main(arguments) == 2  # nothing is trained, as there is nothing to open
    shutil.copytree(image_folder, tmp_path / "photos")
    assert main(arguments) == 0


def test_labelled_images_that_vanish_while_training_end_it_with_3(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(image_folder, tmp_path / "photos")
    update = Update.__call__

    def emptied(self: Update, inputs: Any, finished: int) -> StepOutput:
        for path in (tmp_path / "photos" / "val").rglob("*.jpg"):
            path.unlink()
        return update(self, inputs, finished)

    monkeypatch.setattr(Update, "__call__", emptied)
    photos = tmp_path / "photos"
    knn = {"train": photos / "train", "val": photos / "val", "every_epochs": 1, "k": 3}
    with pytest.raises(TrainingError, match="50 images tried in a row are unreadable"):
        pretrain(**tiny(image_folder, tmp_path / "run", knn=knn))


def test_a_folder_of_unreadable_images_trains_nothing_and_ends_with_2(tmp_path: Path) -> None:
    for path in write_images(tmp_path / "photos" / "train", 60):
        path.write_bytes(b"?")
    assert main(["pretrain", *flags(tiny(tmp_path / "photos", tmp_path / "run"))]) == 2

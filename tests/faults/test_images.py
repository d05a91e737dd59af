"""Damaged and hostile images: they decode, or are counted as unreadable; nothing hangs or takes up much memory."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgd_ssl.bench.photographs import photograph
from mgd_ssl.config import Decoding
from mgd_ssl.data.decode import decode, decode_pixels
from mgd_ssl.data.images import Images
from mgd_ssl.data.samples import Backend, CentreCrops, TwoViews
from moco import ViewPolicy
from tests.faults.mutations import encoded, mutated, survived
from tests.runs import DEADLINE

pytestmark = pytest.mark.usefixtures("cache")


SMALL = Decoding(max_pixels=2**18)


PHOTO = photograph(0, 61, 47)


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

"""Fast decoding gives Pillow's pixels, or refuses what Pillow refuses."""

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile

from mgd_ssl.bench.photographs import photograph
from mgd_ssl.config import Decoding
from mgd_ssl.data import decode as decoding
from mgd_ssl.data.decode import decode, decode_pixels

PHOTO = photograph(0, 77, 50)


def encoded(image: Image.Image = PHOTO, form: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(exif=exif)


def frames(form: str) -> bytes:
    others = [PHOTO.rotate(90, expand=False), PHOTO.rotate(180)]
    return encoded(form=form, save_all=True, append_images=others)


def sixteen_bits() -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (20, 30), dtype=np.uint16)), "PNG")


WHOLE = {
    "4:2:0": lambda: encoded(quality=92, subsampling="4:2:0"),
    "4:2:2": lambda: encoded(subsampling="4:2:2"),
    "4:4:4": lambda: encoded(subsampling="4:4:4", quality=100),
    "low quality": lambda: encoded(quality=5),
    "progressive": lambda: encoded(progressive=True),
    "restart markers": lambda: encoded(restart_marker_blocks=2),
    "RGB inside": lambda: encoded(keep_rgb=True),
    "one pixel": lambda: encoded(PHOTO.resize((1, 1))),
    "a column": lambda: encoded(PHOTO.resize((1, 90))),
    "rubbish after the end": lambda: encoded() + b"rubbish",
    "rotated by EXIF": lambda: with_orientation(6),
    "mirrored by EXIF": lambda: with_orientation(2),
    "colour profile": lambda: encoded(icc_profile=b"\0" * 200),
    "grey": lambda: encoded(PHOTO.convert("L")),
    "CMYK": lambda: encoded(PHOTO.convert("CMYK")),
    "several in one": lambda: frames("MPO"),
    "PNG": lambda: encoded(form="PNG"),
    "alpha": lambda: encoded(PHOTO.convert("RGBA"), "PNG"),
    "palette": lambda: encoded(PHOTO.convert("P"), "PNG"),
    "16 bits": sixteen_bits,
    "animation": lambda: frames("GIF"),
    "WebP": lambda: encoded(form="WEBP"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_pixels_are_pillows(kind: str) -> None:
    content = WHOLE[kind]()
    found = decode_pixels(content)
    assert np.array_equal(found, np.asarray(decode(content)))
    assert found.dtype == np.uint8 and found.flags.writeable and found.flags.c_contiguous


def header_only(content: bytes) -> bytes:
    return content[: content.index(b"\xff\xda")]


def twelve_bits(content: bytes) -> bytes:
    start = content.index(b"\xff\xc0")
    return content[: start + 4] + b"\x0c" + content[start + 5 :]


BROKEN = {
    "empty": lambda: b"",
    "text": lambda: b"<html>404</html>",
    "half": lambda: encoded()[: len(encoded()) // 2],
    "only the start": lambda: b"\xff\xd8\xff",
    "no pixels": lambda: header_only(encoded()),
    "12 bits": lambda: twelve_bits(encoded()),
    "half a PNG": lambda: encoded(form="PNG")[:3000],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_pillow_refuses_is_refused_in_its_words(kind: str) -> None:
    content = BROKEN[kind]()
    with pytest.raises(Exception) as pillows:  # noqa: PT011
        decode(content)
    with pytest.raises(type(pillows.value)) as ours:
        decode_pixels(content)
    assert str(ours.value) == str(pillows.value)


def outcome(how: Any, content: bytes) -> str:
    try:
        return np.asarray(how(content)).tobytes().hex()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_damaged_files_fare_as_under_pillow() -> None:
    whole = encoded()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for position in rng.integers(2, len(whole), 3):
            damaged[position] = rng.integers(256)
        content = bytes(damaged)
        assert outcome(decode_pixels, content) == outcome(decode, content)
    for cut in range(1, 40):
        assert outcome(decode_pixels, whole[:-cut]) == outcome(decode, whole[:-cut])


@pytest.mark.parametrize("kind", WHOLE)
def test_images_of_too_many_pixels_are_not_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = WHOLE[kind]()
    height, width, _ = decode_pixels(content).shape
    assert decode_pixels(content, Decoding(max_pixels=width * height)).shape == (height, width, 3)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **kwargs: pytest.fail("decoded"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for how in (decode, decode_pixels):
        with pytest.raises(ValueError, match=f"it has {width} x {height} pixels, and max_pixels is"):
            how(content, Decoding(max_pixels=width * height - 1))


def test_plain_files_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(content: bytes, how: Decoding) -> tuple[Image.Image, bool]:
        raise AssertionError

    monkeypatch.setattr(decoding, "decode_told", never)
    for kind in ("4:2:0", "4:4:4", "progressive", "RGB inside", "rotated by EXIF"):
        decode_pixels(WHOLE[kind]())

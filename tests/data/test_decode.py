"""Decoding: transparent parts on a background, and deep pixels as 8 bits."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from mgd_ssl.config import DataConfig, Decoding, PretrainConfig
from mgd_ssl.data.decode import decode, decode_pixels, decode_pixels_told, decode_told
from tests.data.coded import ALPHA, COLOURS, GREYS, RNG, SIXTEEN, encoded, png, tiff

pytestmark = pytest.mark.usefixtures("cache")


BACKGROUNDS = ["white", "black", "#10c080"]


def composited(colours: np.ndarray, alpha: np.ndarray, background: str) -> np.ndarray:
    """By the formula: [H, W, 3] floats."""
    share = alpha.astype(float)[..., None] / 255
    levels = colours.astype(float) if colours.ndim == 3 else colours.astype(float)[..., None]
    return share * levels + (1 - share) * np.array(ImageColor.getrgb(background)[:3], float)


Case = tuple[bytes, np.ndarray, np.ndarray]  # a file, its colours [H, W] or [H, W, 3], and its alpha [H, W]


def rgba(form: str, **options: Any) -> Case:
    return encoded(Image.fromarray(np.dstack([COLOURS, ALPHA])), form, **options), COLOURS, ALPHA


def grey_alpha(form: str) -> Case:
    return encoded(Image.merge("LA", (Image.fromarray(GREYS), Image.fromarray(ALPHA))), form), GREYS, ALPHA


def palette(transparency: bytes | int, form: str = "PNG") -> Case:
    indices = GREYS % 32
    image = Image.fromarray(indices, "P")
    table = RNG.integers(0, 256, (32, 3), dtype=np.uint8)
    image.putpalette(table.tobytes())
    alphas = np.full(32, 255, np.uint8)
    if isinstance(transparency, int):
        alphas[transparency] = 0
    else:
        alphas[: len(transparency)] = np.frombuffer(transparency, np.uint8)
    return encoded(image, form, transparency=transparency), table[indices], alphas[indices]


def palette_alpha() -> Case:
    """A TIFF with a palette and an alpha channel."""
    colours = Image.fromarray(GREYS // 64, "P")
    table = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    colours.putpalette(table.tobytes())
    image = colours.convert("PA")
    image.putalpha(Image.fromarray(ALPHA))
    return encoded(image, "TIFF"), table[GREYS // 64], ALPHA


def one_grey(depth: int) -> Case:
    """A grey PNG of which one level, 1, is transparent."""
    levels = GREYS.astype(int) * 257 if depth == 16 else GREYS.astype(int) >> (8 - depth)
    levels[0, :4] = 1
    bits = (levels[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = [np.packbits(row.reshape(-1)).tobytes() for row in bits]
    return png(depth, 0, rows, b"\0\1"), levels * 255 / (2**depth - 1), np.where(levels == 1, 0, 255)


def one_colour(depth: int) -> Case:
    """A PNG of which one colour is transparent."""
    levels = COLOURS.astype(int) * (257 if depth == 16 else 1)
    levels[2:5] = levels[0, 0]
    rows = [row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in levels]
    key = struct.pack(">HHH", *levels[0, 0])
    return (
        png(depth, 2, rows, key),
        levels / (257 if depth == 16 else 1),
        np.where((levels == levels[0, 0]).all(2), 0, 255),
    )


def half_seen_16_bits() -> Case:
    pixels = np.dstack([COLOURS, ALPHA]).astype(">u2") * 257
    return png(16, 6, [row.tobytes() for row in pixels.astype(">u2")]), COLOURS, ALPHA


CLEAR: dict[str, Callable[[], Case]] = {
    "RGBA PNG": lambda: rgba("PNG"),
    "RGBA WebP": lambda: rgba("WEBP", lossless=True, exact=True),
    "RGBA TIFF": lambda: rgba("TIFF"),
    "RGBA JPEG 2000": lambda: rgba("JPEG2000"),
    "RGBA PNG, 16 bits": half_seen_16_bits,
    "LA PNG": lambda: grey_alpha("PNG"),
    "LA TIFF": lambda: grey_alpha("TIFF"),
    "PA TIFF": palette_alpha,
    "palette with alphas": lambda: palette(bytes(range(0, 256, 10))),
    "palette with a clear colour": lambda: palette(3),
    "GIF": lambda: palette(3, "GIF"),
    "grey, 1 bit": lambda: one_grey(1),
    "grey, 2 bits": lambda: one_grey(2),
    "grey, 4 bits": lambda: one_grey(4),
    "grey, 8 bits": lambda: one_grey(8),
    "grey, 16 bits": lambda: one_grey(16),
    "a clear colour, 8 bits": lambda: one_colour(8),
    "a clear colour, 16 bits": lambda: one_colour(16),
}


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("kind", CLEAR)
def test_transparent_parts_are_composited_on_the_background(kind: str, background: str) -> None:
    content, colours, alpha = CLEAR[kind]()
    how = Decoding(background)
    image, told = decode_told(content, how)
    pixels, told_too = decode_pixels_told(content, how)
    assert told and told_too and image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)
    expected = composited(colours, alpha, background)
    assert np.abs(pixels - expected).max() <= 1
    assert (alpha == 0).any()
    assert (pixels[alpha == 0] == ImageColor.getrgb(background)[:3]).all()  # nothing of what is under it


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_an_alpha_channel_that_hides_nothing_is_not_counted(form: str) -> None:
    solid = Image.fromarray(np.dstack([COLOURS, np.full((12, 16), 255, np.uint8)]))
    options = {"lossless": True} if form == "WEBP" else {}
    image, told = decode_told(encoded(solid, form, **options), Decoding("black"))
    assert not told and np.array_equal(np.asarray(image), COLOURS)


SMALL_SHARE = RNG.uniform(0.2, 0.4, (12, 16)).astype(np.float32)


OWN = RNG.integers(-70000, 90000, (12, 16), dtype=np.int32)


UNSIGNED = RNG.integers(2**31 - 10**6, 2**31 + 10**6, (12, 16), dtype=np.uint32)


def by_range(values: np.ndarray) -> np.ndarray:
    return values.astype(float) / 65535 * 255


def by_own(values: np.ndarray) -> np.ndarray:
    return (values.astype(float) - values.min()) / (float(values.max()) - float(values.min())) * 255


DEEP: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {
    "16 bits, PNG": lambda: (encoded(Image.fromarray(SIXTEEN), "PNG"), by_range(SIXTEEN)),
    "16 bits, PNG by hand": lambda: (png(16, 0, [row.astype(">u2").tobytes() for row in SIXTEEN]), by_range(SIXTEEN)),
    "16 bits, TIFF": lambda: (encoded(Image.fromarray(SIXTEEN), "TIFF"), by_range(SIXTEEN)),
    "16 bits, TIFF, big end first": lambda: (tiff(SIXTEEN, order=">"), by_range(SIXTEEN)),
    "16 bits, TIFF, 0 is white": lambda: (tiff(SIXTEEN, photometric=0), 255 - by_range(SIXTEEN)),
    "16 bits, JPEG 2000": lambda: (encoded(Image.fromarray(SIXTEEN), "JPEG2000"), by_range(SIXTEEN)),
    "16 bits, PGM": lambda: (b"P5 16 12 65535\n" + SIXTEEN.astype(">u2").tobytes(), by_range(SIXTEEN)),
    "10 bits, PGM": lambda: (b"P5 16 12 1023\n" + (SIXTEEN >> 6).astype(">u2").tobytes(), (SIXTEEN >> 6) / 1023 * 255),
    "16 bits signed, TIFF": lambda: (tiff((OWN // 4).astype(np.int16), kind=2), by_own(OWN // 4)),
    "32 bits, TIFF": lambda: (encoded(Image.fromarray(OWN), "TIFF"), by_own(OWN)),
    "32 bits unsigned, TIFF": lambda: (tiff(UNSIGNED), by_own(UNSIGNED)),
    "floats, TIFF": lambda: (encoded(Image.fromarray(SMALL_SHARE), "TIFF"), by_own(SMALL_SHARE)),
    "floats, TIFF, 0 is white": lambda: (tiff(SMALL_SHARE, photometric=0, kind=3), 255 - by_own(SMALL_SHARE)),
    "floats, PFM": lambda: (b"Pf 16 12 -1.0\n" + SMALL_SHARE[::-1].tobytes(), by_own(SMALL_SHARE)),
}  # fmt: skip


@pytest.mark.parametrize("kind", DEEP)
def test_deep_pixels_are_scaled_by_their_range(kind: str) -> None:
    content, expected = DEEP[kind]()
    image, told = decode_told(content, Decoding())
    assert image.mode == "RGB" and not told
    pixels = np.asarray(image)
    assert np.array_equal(pixels, decode_pixels(content))
    assert (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0] - expected).max() <= 0.51
    assert pixels.std() > 50  # neither black nor white


def test_deep_pixels_without_a_range_are_refused() -> None:
    holed = SMALL_SHARE.copy()
    holed[3, 3] = np.nan
    endless = SMALL_SHARE.copy()
    endless[3, 3] = np.inf
    for values, told in (
        (holed, "not finite"),
        (endless, "not finite"),
        (np.full((4, 4), 7, np.int32), "all its values are 7"),
    ):
        with pytest.raises(ValueError, match=told):
            decode(encoded(Image.fromarray(values), "TIFF"))


# the setting


def test_a_background_is_one_word_however_it_is_written() -> None:
    photos = Path("photos")
    for written, word in {
        "white": "white", "White": "white", "#FFFFFF": "white", (255, 255, 255): "white", "black": "black",
        (0, 0, 0): "black", "#0a0B0c": "#0a0b0c", (10, 11, 12): "#0a0b0c",
    }.items():  # fmt: skip
        assert DataConfig(train=photos, background=written).background == word
    assert DataConfig(train=photos, background=[1, 2, 3]).background == "#010203"
    assert DataConfig(train=photos).background == Decoding().background
    assert DataConfig(train=photos).max_pixels == Decoding().max_pixels
    cases: tuple[Any, ...] = (
        "pink",
        "#fff",
        "",
        None,
        3,
        (1, 2),
        (1, 2, 256),
        (1.0, 2, 3),
        "white\n",
        [[]],
    )
    for wrong in cases:
        with pytest.raises(ValueError, match=r"^data\.background is .*: pass white, black, #rrggbb or three levels"):
            PretrainConfig(out="run", data={"train": photos, "background": wrong})
    with pytest.raises(ValueError, match=r"^data\.background is .*: true and false are for switches"):
        PretrainConfig(out="run", data={"train": photos, "background": (True, 0, 0)})
    for wrong_number in (0, -1, 10**9):
        with pytest.raises(ValueError, match=r"^data\.max_pixels is "):
            PretrainConfig(out="run", data={"train": photos, "max_pixels": wrong_number})

"""Decoding through Pillow: which formats, how large, on what background, and how deep pixels become 8 bits.

Transparent parts are composited on a background: what colours a file holds under them nobody has ever seen.
"""

import io
import logging
import warnings
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from mgd_ssl.config import USUAL, Decoding
from mgd_ssl.data.views_cpu import Pixels

DECODER_VERSION = 1
"""Of the pixels that all decoders give. Raise it whenever any file comes out with other pixels than before, or is newly
readable or unreadable: what was computed from the pixels and kept (cached features) is then computed anew."""

ROWS_AT_ONCE = 2**20  # pixels that are floats at a time
GREY_FACTORS = {"L;2": 85, "L;4": 17}  # by which Pillow spreads grey levels, but not the transparent one among them

# What Pillow says of palettes and damaged metadata would be on the screen once a worker and place in its code. What
# makes an image unreadable is an exception; its size is judged here, by `Decoding.max_pixels`.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


def identify(content: bytes, how: Decoding = USUAL) -> Image.Image:
    """An encoded image with only its header looked at; whatever is wrong with that is an exception."""
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:  # its own text names a buffer's address
        raise UnidentifiedImageError("its format is none that Pillow knows") from None
    if image.format == "EPS":  # a program, which another one, Ghostscript, would have to run
        raise UnidentifiedImageError("its format is EPS")
    width, height = image.size
    if not 0 < width * height <= how.max_pixels:
        raise ValueError(f"it has {width} x {height} pixels, and max_pixels is {how.max_pixels}")
    return image


def decode(content: bytes, how: Decoding = USUAL) -> Image.Image:
    """An encoded image as RGB, through Pillow; whatever is wrong with it is an exception."""
    return decode_told(content, how)[0]


def decode_told(content: bytes, how: Decoding) -> tuple[Image.Image, bool]:
    """An encoded image as RGB, and whether it was composited on the background."""
    with identify(content, how) as image:
        tiles = getattr(image, "tile", ())
        kind = str(tiles[0][3]) if tiles else ""  # how its pixels are packed; known until they are unpacked
        image.load()
        if image.mode == "F" or image.mode.startswith("I"):
            return _composited(_eight_bits(image), how.background)
        if kind in GREY_FACTORS and isinstance(image.info.get("transparency"), int):
            image.info["transparency"] *= GREY_FACTORS[kind]
        elif kind.startswith("RGB;16") and "transparency" in image.info:  # of which Pillow keeps the high bytes
            image.info["transparency"] = tuple(level >> 8 for level in image.info["transparency"])
        return _composited(image, how.background)


def _composited(image: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """An image of 8 bits on a background as RGB, and whether any of that shows."""
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return image.convert("RGB"), False
    flat = Image.new("RGB", image.size, background)
    flat.paste(image, mask=alpha)
    return flat, True


# more than 8 bits


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits as one of 8, with an alpha channel where one of its values is transparent.

    Unsigned values of up to 16 bits are scaled by the range of their bits, all others by their own range, from the
    smallest to the largest in the image: the range of 32 bits says nothing about what they hold.

    Raises:
        ValueError: when they are not finite, or all the same where their own range counts.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM")):
        low, high = 0, 2 ** int(_first(tags.get(258), 16)) - 1  # 258: BitsPerSample
    else:
        if image.mode == "I" and image.format == "TIFF" and _first(tags.get(339), 1) == 1:  # 339: SampleFormat
            values = values.view(np.uint32)  # 1 is unsigned, which Pillow does not know
        low, high = values.min().item(), values.max().item()
        if not np.isfinite([low, high]).all():
            raise ValueError("it holds values that are not finite")
        if low == high:
            raise ValueError(f"all its values are {low}, in a format without a range")
    if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white
        low, high = high, low
    grey = Image.fromarray(_scaled(values, low, high))
    key: Any = image.info.get("transparency")
    if key is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))


def _first(value: Any, otherwise: int) -> Any:
    """A tag of TIFF, or its first value of several."""
    return otherwise if value is None else value[0] if isinstance(value, tuple) else value


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values [H, W] as uint8: low is 0 and high 255."""
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, ROWS_AT_ONCE // values.shape[1])
    for start in range(0, len(values), rows):
        share = (values[start : start + rows].astype(np.float64) - low) / (high - low)
        scaled[start : start + rows] = np.rint(np.clip(share, 0, 1) * 255)
    return scaled


PLAIN = ("YCbCr", "RGB")  # libjpeg would make RGB of CMYK and grey too, but not Pillow's


def decode_pixels(content: bytes, how: Decoding = USUAL) -> Pixels:
    """An encoded image as RGB [H, W, 3]: the pixels Pillow gives, and its exception where it refuses.

    Like Pillow, it leaves images as they lie in the file, whatever EXIF says of their orientation.
    """
    return decode_pixels_told(content, how)[0]


def decode_pixels_told(content: bytes, how: Decoding) -> tuple[Pixels, bool]:
    """An encoded image as RGB [H, W, 3], and whether it was composited on the background."""
    if content.startswith(b"\xff\xd8\xff"):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
            if colours in PLAIN and height * width <= how.max_pixels:
                return simplejpeg.decode_jpeg(content, fastdct=False, fastupsample=False), False
        except ValueError:  # damaged, or of a kind it does not know: Pillow has the last word, and words it better
            pass
    image, composited = decode_told(content, how)
    return np.array(image), composited

"""Decoding to an array, fast where the file is a plain JPEG and through Pillow where it is anything else."""

import numpy as np
import simplejpeg

from mgd_ssl.data.decode import USUAL, Decoding, decode_told
from mgd_ssl.data.views_cpu import Pixels

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

"""Decoding to an array, fast where the file is a plain JPEG and through Pillow where it is anything else."""

import numpy as np
import simplejpeg
from PIL import Image

from mgd_ssl.images import decode
from moco.augment_cpu import Pixels

PLAIN = ("YCbCr", "RGB")  # libjpeg would make RGB of CMYK and grey too, but not Pillow's
UNLIMITED = 2**62


def decode_pixels(content: bytes) -> Pixels:
    """An encoded image as RGB [H, W, 3]: the pixels Pillow gives, and its exception where it refuses.

    Like Pillow, it leaves images as they lie in the file, whatever EXIF says of their orientation.
    """
    if content.startswith(b"\xff\xd8\xff"):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
            if colours in PLAIN and height * width <= (Image.MAX_IMAGE_PIXELS or UNLIMITED):
                return simplejpeg.decode_jpeg(content, fastdct=False, fastupsample=False)
        except ValueError:  # damaged, or of a kind it does not know: Pillow has the last word, and words it better
            pass
    return np.array(decode(content))

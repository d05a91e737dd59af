"""Random pixels, and files of them."""

import io
import struct
import zlib
from typing import Any, Literal

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


COLOURS = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)


GREYS = RNG.integers(0, 256, (12, 16), dtype=np.uint8)


ALPHA = RNG.choice(np.array([0, 0, 60, 128, 200, 255], np.uint8), (12, 16))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(depth: int, kind: int, rows: list[bytes], transparent: bytes = b"") -> bytes:
    """A PNG of 16 x 12 written by hand, with a tRNS chunk."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 12, depth, kind, 0, 0, 0))
    content += chunk(b"tRNS", transparent) if transparent else b""
    return content + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b"")


# more than 8 bits


def tiff(
    values: np.ndarray, photometric: int = 1, kind: int = 1, order: Literal["<", ">"] = "<", odd: bool = False
) -> bytes:
    """A TIFF of grey values [12, 16] written by hand; `kind` is its SampleFormat: 1 unsigned, 2 signed, 3 floats.

    Pillow warns of an `odd` one: a tag has two values.
    """
    content = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = {
        256: 16, 257: 12, 258: values.dtype.itemsize * 8, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 12,
        279: len(content), 339: kind,
    }  # fmt: skip
    entries = struct.pack(f"{order}HHII", 282, 5, 2, 8) if odd else b""
    entries += b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(content))
    return start + content + struct.pack(f"{order}H", len(tags) + odd) + entries + bytes(4)


SIXTEEN = RNG.integers(0, 2**16, (12, 16), dtype=np.uint16)

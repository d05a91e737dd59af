"""What the workers of a pack do: images read, and reduced where they are larger than asked for."""

import io
import os
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image
from torch.utils.data import Dataset

from mgd_ssl.data.decode import decode, identify
from mgd_ssl.data.folder import is_image
from mgd_ssl.data.images import Images


class Packed(NamedTuple):
    """An image as it goes into a shard."""

    content: bytes
    extension: str
    why: str  # it cannot be packed; empty when it can


class Packing(Dataset[list[Packed]]):
    """Images read, and reduced where they are larger than asked for.

    Args:
        images: the source.
        short_side: in pixels, None copies all.
        quality: of JPEG.
    """

    def __init__(self, images: Images, short_side: int | None, quality: int) -> None:
        self.images, self.short_side, self.quality = images, short_side, quality

    def __getitems__(self, indices: Sequence[int]) -> list[Packed]:
        """A list of images; the loader calls this once with a whole chunk."""
        return [self._packed(index) for index in indices]

    def _packed(self, index: int) -> Packed:
        name = self.images.name(index)
        try:
            content = self.images.read(index)
            with identify(content, self.images.decoding) as image:
                size, kind = image.size, image.format
            if self.short_side is not None and min(size) > self.short_side:
                return Packed(reduced(decode(content, self.images.decoding), self.short_side, self.quality), ".jpg", "")
            extension = os.path.splitext(name)[1] if is_image(name) else f".{kind}".lower()
            if not is_image(f"x{extension}"):  # JPEGs of telephones are of the kind MPO; readers look at the content
                extension = ".jpg"
            return Packed(content, extension, "")
        except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
            return Packed(b"", "", f"{type(error).__name__}: {error}")


def reduced(image: Image.Image, short_side: int, quality: int) -> bytes:
    """An RGB image at a smaller short side as JPEG; its metadata are not kept."""
    scale = short_side / min(image.size)
    size = max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()

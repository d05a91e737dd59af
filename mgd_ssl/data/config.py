"""Settings of data sets."""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from mgd_ssl.config import MAX_WORKERS, USUAL, Background, MaxPixels
from mgd_ssl.settings import Required, Settings

MAX_SIDE = 65500  # pixels of a JPEG


class PackConfig(Settings):
    """Rewrite images once into tar shards of WebDataset's layout, which pretrain, knn and linear read like a folder."""

    images: Annotated[
        Path, Required("two folders, that of the images first"), tyro.conf.Positional, tyro.conf.arg(metavar="DIR")
    ]
    """Folder of images (or any other source of images)."""
    out: Annotated[
        Path,
        Required("two folders, that of the images and that of the shards to be written"),
        tyro.conf.Positional,
        tyro.conf.arg(metavar="OUT"),
    ]
    """Folder of the shards; the same command again continues a pack that was stopped."""
    short_side: int | None = Field(None, ge=1, le=MAX_SIDE)
    """Reduce larger images to this short side in pixels, as JPEG; None: copy all images as they are."""
    quality: int = Field(95, ge=1, le=100)
    """Of the JPEG, where an image is reduced."""
    shard_images: int = Field(4096, ge=1, le=2**31)
    """Images in a shard."""
    labels: Literal["auto", "yes", "no"] = "auto"
    """Write classes (first folder of the path) into .cls members; auto: when every image has one."""
    max_unreadable: float = Field(0.01, ge=0, le=1)
    """Share of images that may be left out because their format is unknown or they cannot be reduced."""
    background: Background = USUAL.background
    """Behind transparent parts of images that are reduced: white, black, #rrggbb, or in a file [r, g, b]."""
    max_pixels: MaxPixels = USUAL.max_pixels
    """Images with more pixels are left out."""
    workers: int | None = Field(None, ge=0, le=MAX_WORKERS)
    """Processes that read and reduce; None: one a core. The shards do not depend on it."""

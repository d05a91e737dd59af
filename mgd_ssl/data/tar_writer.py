"""Samples of WebDataset's layout, appended to a tar file."""

import io
import os
import tarfile
from collections.abc import Sequence

import numpy as np

from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.images import Images
from mgd_ssl.data.packing import Packed
from mgd_ssl.data.shard_index import BLOCK, IndexBuilder


class Keys:
    """Names of samples: the image's path without its extension, in the order of the images.

    WebDataset takes what precedes the first dot of the last part for the name of a sample, so dots are written as %2E
    there; of two images that differ by their extensions only, the extension becomes part of the name. Images that do
    not come from a folder are named class/number.
    """

    def __init__(self, images: Images, labels: np.ndarray | None, classes: Sequence[str]) -> None:
        self.images, self.labels = images, labels
        self.folders = [name.replace("/", "%2F") for name in classes]
        self.repeated: set[str] = set()
        if isinstance(images, ImageList):
            seen: set[str] = set()
            for name in images.names:
                key = quoted(os.path.splitext(name)[0])
                (self.repeated if key in seen else seen).add(key)

    def __getitem__(self, index: int) -> str:
        if not isinstance(self.images, ImageList):
            folder = "" if self.labels is None else f"{self.folders[self.labels[index]]}/"
            return f"{folder}{index:09d}"
        name = self.images.name(index)
        key = quoted(os.path.splitext(name)[0])
        return quoted(name) if key in self.repeated else key


def quoted(path: str) -> str:
    """A path without dots in its last part."""
    folder, slash, base = path.rpartition("/")
    return folder + slash + base.replace("%", "%25").replace(".", "%2E")


def add_sample(tar: tarfile.TarFile, builder: IndexBuilder, key: str, image: Packed, label: str | None) -> None:
    """Append an image, and its class, to a shard and to its index."""
    name = key + image.extension
    offset = add_member(tar, name, image.content)
    if label is not None:
        add_member(tar, f"{key}.cls", label.encode())
    builder.add(name, offset, len(image.content), label)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file without times and owners, which would differ from pack to pack; returns where it starts."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    return tar.offset - -(-len(content) // BLOCK) * BLOCK

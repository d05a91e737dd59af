"""Bags of images that a teacher holds for alike: which other image goes with which."""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mgd_ssl.data.images import Images
from mgd_ssl.errors import UserError
from mgd_ssl.files import sha256_of, write_whole, writing
from moco.keyed import keyed_generator

BROKEN = (OSError, ValueError, KeyError, TypeError, EOFError, IndexError, zipfile.BadZipFile)  # of a file that is none


@dataclass(frozen=True)
class Bags:
    """The nearest images of every image.

    Args:
        neighbours: [M, k] int32 indices, nearest first, without the image itself.
        seed: of the run.
        sha256: of the file they are from.
    """

    neighbours: np.ndarray
    seed: int
    sha256: str = ""

    def member(self, epoch: int, index: int) -> int:
        """Another image of the bag, each with the same chance: a function of (seed, epoch, index)."""
        bag = self.neighbours[index]
        return int(bag[keyed_generator(self.seed, "member", epoch, index).integers(len(bag))])


def save_bags(path: Path, neighbours: np.ndarray, about: dict[str, Any]) -> None:
    """Write bags, whole or not at all.

    Args:
        path: of the file.
        neighbours: [M, k].
        about: `fingerprint` of the images, and what else there is to say of them.

    Raises:
        DiskError: when it cannot be written.
    """
    content = io.BytesIO()
    np.savez_compressed(content, neighbours=neighbours.astype(np.int32), about=np.array(json.dumps(about)))
    with writing(path):
        write_whole(path, content.getvalue())


def about_bags(path: Path) -> dict[str, Any]:
    """What a file of bags says of itself; nothing, where it is another file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
    except BROKEN:
        return {}
    return about if isinstance(about, dict) else {}


def load_bags(path: Path, images: Images, seed: int) -> Bags:
    """The bags of these images.

    Raises:
        UserError: when the file cannot be read, is no file of bags, or is of other images.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            neighbours, about = file["neighbours"], json.loads(str(file["about"]))
        fingerprint = about["fingerprint"]
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: make it with `mgd-ssl bags`") from error
    except BROKEN as error:
        raise UserError(f"{path} is no whole file of bags ({error}): make it anew with `mgd-ssl bags`") from error
    if fingerprint != images.fingerprint():
        raise UserError(
            f"the bags in {path} are of other images ({len(neighbours)}) than data.train ({len(images)}), or of others "
            "by name: make bags of these with `mgd-ssl bags`"
        )
    if neighbours.ndim != 2 or not len(neighbours) == len(images) or not _inside(neighbours):
        raise UserError(f"{path} names images that are not there: make it anew with `mgd-ssl bags`")
    return Bags(neighbours, seed, sha256_of(path))


def _inside(neighbours: np.ndarray) -> bool:
    return neighbours.size > 0 and bool(neighbours.min() >= 0) and bool(neighbours.max() < len(neighbours))

"""Opens images wherever they are: a folder, tar shards, a Hugging Face data set."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgd_ssl.config import USUAL, Decoding
from mgd_ssl.data import cub
from mgd_ssl.data.folder import ImageList, is_image
from mgd_ssl.data.hugging_face import SUFFIXES, ArrowImages, is_saved, saved_files
from mgd_ssl.data.images import Images, read_regular
from mgd_ssl.data.shards import INDEX_NAME, is_unfinished, open_packed, open_shards
from mgd_ssl.errors import UserError
from mgd_ssl.run.runtime import on_rank_zero

FILES = (".tar", *SUFFIXES)
LONGEST_LIST = 2**26  # bytes of a text file with paths
KINDS = "a folder of images, tar shards (a folder, a file, a pattern, a list) or a Hugging Face data set"


def open_images(path: Path, how: Decoding = USUAL) -> Images:
    """The images at a path.

    Args:
        path: a folder of images; tar shards as the folder they lie in, one .tar file, a pattern like `dir/*.tar`, or
            a text file with a path a line, relative to it; a Hugging Face data set as the folder of `save_to_disk`, or
            as .arrow or .parquet files, named in the same ways; CUB_200_2011/train or /val, though there are no such
            folders.
        how: they are decoded.

    Raises:
        UserError: when there is no image, or a file is missing or damaged.
    """
    images = _open(path)
    images.decoding = how
    return images


def _open(path: Path) -> Images:
    if path.is_dir():
        return _open_folder(path)
    if cub.is_part(path):
        return cub.open_part(path)
    if path.is_file():
        return open_files([path] if path.suffix in FILES else listed(path))
    if found := matching(path):
        return open_files(found)
    raise UserError(f"{path} is not there: pass {KINDS}")


def open_files(paths: Sequence[Path]) -> Images:
    """The images in several files of one kind."""
    if unknown := [path for path in paths if path.suffix not in FILES]:
        raise UserError(f"{unknown[0]} is none of {', '.join(FILES)}: pass {KINDS}")
    if odd := [path for path in paths if path.suffix != paths[0].suffix]:
        raise UserError(f"{odd[0]} cannot be read together with {paths[0]}: pass files of one kind")
    return open_shards(paths) if paths[0].suffix == ".tar" else ArrowImages(paths)


def is_there(path: Path) -> bool:
    """Whether `open_images` has something to open."""
    return path.exists() or cub.is_part(path) or bool(matching(path))


def matching(pattern: Path) -> list[Path]:
    """Paths that match a pattern with *, ? or [...], sorted."""
    return [Path(name) for name in sorted(glob.glob(str(pattern)))] if glob.has_magic(str(pattern)) else []


def _open_folder(folder: Path) -> Images:
    """Shards or a data set where the folder says so, or holds such files and neither images nor folders."""
    if (folder / INDEX_NAME).exists():
        return open_packed(folder)
    if is_unfinished(folder):
        raise UserError(f"{folder} holds an unfinished pack: run the same `mgd-ssl pack` again to finish it")
    if is_saved(folder):
        return ArrowImages(saved_files(folder))
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}): check its permissions") from error
    files = [entry for entry in entries if entry.suffix in FILES]
    if files and not any(entry.is_dir() or is_image(entry.name) for entry in entries):
        return open_files(files)
    return ImageList.scan(folder)


def listed(path: Path) -> list[Path]:
    """The paths in a text file, one a line, relative to the file's folder; empty lines and # lines do not count.

    Raises:
        UserError: when it is no text, or lists nothing.
    """
    if is_image(path.name):
        raise UserError(f"{path} is a single image: pass {KINDS}")
    try:
        lines = [line.strip() for line in read_regular(path, LONGEST_LIST).decode().splitlines()]
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is neither {' nor '.join(FILES)} nor a list of such files: pass {KINDS}") from error
    found = [path.parent / line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UserError(f"{path} lists no file: write one path a line")
    return found


class Labelled(NamedTuple):
    """Images and their labels."""

    images: Images
    labels: np.ndarray  # [len(images)] int64


def scan_labelled(train: Path, val: Path, how: Decoding = USUAL) -> tuple[Labelled, Labelled]:
    """The images of two labelled sources, with the class indexes of the first for both.

    Args:
        train: anything `open_images` takes.
        val: likewise; the classes are told by their names.
        how: both are decoded.

    Raises:
        UserError: for missing sources, images without a class, a single class, or classes that differ.
    """
    pair = on_rank_zero(lambda: (open_images(train, how), open_images(val, how)))
    (labels, classes), (val_labels, val_classes) = (images.labels() for images in pair)
    if odd := sorted(set(classes) ^ set(val_classes)):
        raise UserError(f"{train} and {val} differ in classes ({', '.join(odd[:5])}): make them the same")
    index_of = {name: index for index, name in enumerate(classes)}
    return Labelled(pair[0], labels), Labelled(pair[1], np.array([index_of[name] for name in val_classes])[val_labels])

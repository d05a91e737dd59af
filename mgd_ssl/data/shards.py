"""Images inside tar shards, read at random by their position."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mgd_ssl.console import progress_bar
from mgd_ssl.data.images import Images, check_bytes, hash_of_files, open_regular
from mgd_ssl.data.labels import folder_labels, numbered
from mgd_ssl.data.shard_index import BLOCK, NO_LABEL, Shard, ShardIndex, mark_of, read_at
from mgd_ssl.data.shard_scan import scan_shard
from mgd_ssl.errors import UserError
from mgd_ssl.run.log import logger

INDEX_NAME = "shards.index"  # of the index that `mgd-ssl pack` leaves beside its shards
INDEX_ERRORS = (OSError, ValueError, KeyError, TypeError)  # of an index that is missing or damaged
PART = ".shard-{number:06d}.{kind}"  # what it keeps beside a shard until all are there
OPEN_SHARDS = 256  # file descriptors a process holds at most; others are opened again when they are needed


class ShardImages(Images):
    """Images by their position in tar shards.

    Args:
        root: folder the shards' names are relative to.
        index: what is where. Of one that lies in the root, other processes get the path, and map the file themselves;
            any other one (it may be in a cache that another machine does not see) is copied to them.
    """

    def __init__(self, root: Path, index: ShardIndex) -> None:
        self.root, self.index = root, index
        self.ignored = index.ignored
        self.names = index.names

    def __reduce__(self) -> tuple[Callable[..., "ShardImages"], tuple[Any, ...], dict[str, Any]]:
        state = {"decoding": self.decoding}
        if self.index.path == self.root / INDEX_NAME:
            return ShardImages.mapped, (self.root, False), state  # this process has checked it
        return ShardImages, (self.root, self.index), state

    @classmethod
    def mapped(cls, root: Path, check: bool = True) -> "ShardImages":
        """The shards of a folder by the index that lies there."""
        return cls(root, ShardIndex.load(root / INDEX_NAME, check))

    def __len__(self) -> int:
        return len(self.index)

    def name(self, index: int) -> str:
        """`shard-000000.tar/class/image.jpg`."""
        return f"{self.index.shards[self.index.rows[index]['shard']].name}/{self.names[index]}"

    def read(self, index: int) -> bytes:
        """The encoded image, by one read at its position.

        Raises:
            OSError: as the file system says, when the shard holds something else there than when it was indexed, or
                when the image has too many bytes.
        """
        number, offset, size, mark, _, _ = self.index.rows[index].item()
        check_bytes(size, self.decoding.max_bytes)
        shard = self.index.shards[number]
        opened = _opened(self.root / shard.name, shard)
        block = read_at(opened.number, offset, size)
        if mark_of(block) != mark or len(block) < BLOCK + size:
            raise OSError(f"{self.root / shard.name} is no longer the file that was indexed: restore it or start again")
        return block[BLOCK:]

    def labels(self) -> tuple[np.ndarray, list[str]]:
        """Class index [n] of every image and the class names: of the .cls members, else the folders in the names.

        Numbers in .cls members are named by the folders the images are in where there is one for each, so that
        packed folders are labelled like the folders themselves.
        """
        labels, classes = self.index.rows["label"], self.index.classes
        if not classes:
            return folder_labels(self.root, self.names)
        if (missing := np.flatnonzero(labels == NO_LABEL)).size:
            raise UserError(f"{self.root / self.name(int(missing[0]))} has no label: others have a .cls member, it not")
        if len(classes) == 1:
            raise UserError(f"{self.root} holds the single class {classes[0]!r}: labels need at least two")
        index_of = numbered(classes)
        ordered = np.array([index_of[name] for name in classes])[labels]
        return ordered, self._folder_names(ordered, len(classes)) or list(index_of)

    def _folder_names(self, labels: np.ndarray, count: int) -> list[str]:
        """Folder of every class, or nothing unless folders and classes are the same thing."""
        folders: dict[int, str] = {}
        for label, name in zip(labels.tolist(), self.names, strict=True):
            folder, inside, _ = name.partition("/")
            if not inside or folders.setdefault(label, folder) != folder:
                return []
        return [folders[label] for label in range(count)] if len(set(folders.values())) == count else []

    def fingerprint(self) -> str:
        """Hash of the names of shards and members, of the images' sizes, and of their order."""
        digest = hashlib.sha256(json.dumps([shard.name for shard in self.index.shards]).encode())
        for array in (*(self.index.rows[field] for field in ("shard", "size", "name_end")), self.index.packed):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def state(self) -> str:
        """Hash of the place, and of the names, sizes and times of all shards and the sizes of their images."""
        return hash_of_files(self, (shard.name for shard in self.index.shards))


class _Descriptor:
    """An open file that is closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            self.number = os.dup(file.fileno())

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=OPEN_SHARDS)
def _opened(path: Path, shard: Shard) -> _Descriptor:
    """A shard, opened when a process first needs it; positions are given to every read, so forks may share it."""
    return _Descriptor(path)


# opening


def is_unfinished(folder: Path) -> bool:
    """Whether `mgd-ssl pack` was stopped before all shards of a folder were there."""
    return not (folder / INDEX_NAME).exists() and (folder / PART.format(number=0, kind="index")).exists()


def open_packed(folder: Path) -> ShardImages:
    """The shards of a folder with an index from `mgd-ssl pack`.

    Raises:
        UserError: when a shard is missing; shards that have changed, or whose index is damaged, are scanned anew.
    """
    there = sorted(folder.glob("*.tar"))
    try:
        images = ShardImages.mapped(folder)
    except INDEX_ERRORS as error:
        if not there:
            raise UserError(f"{folder} holds {INDEX_NAME} and no shard: restore them") from error
        logger.warning("%s cannot be used (%s): the shards beside it are scanned", folder / INDEX_NAME, error)
        return open_shards(there)
    known = [folder / shard.name for shard in images.index.shards]
    missing = [path for path in known if not path.exists()]
    if missing:
        raise UserError(
            f"{missing[0]} is missing ({len(missing)} of {len(known)} shards): restore it, or remove "
            f"{folder / INDEX_NAME} to do without"
        )
    if there == sorted(known) and is_current(images):
        return images
    logger.warning("shards in %s are not those of its index: they are scanned", folder)
    return open_shards(there)


def open_shards(paths: Sequence[Path]) -> ShardImages:
    """Images of any tar files in the given order; the index is kept in a cache.

    Raises:
        UserError: when a shard is missing, damaged or given twice, or none holds an image.
    """
    if repeated := [path for path in paths if paths.count(path) > 1] if len(set(paths)) < len(paths) else []:
        raise UserError(f"{repeated[0]} is listed twice: list every shard once")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing: restore it, or leave it out")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    cached = cache_path(paths)
    try:
        images = ShardImages(root, ShardIndex.load(cached))
        if is_current(images):
            return images
    except INDEX_ERRORS:
        pass  # not there yet, or not whole: it is made anew
    parts = []
    with ExitStack() as stack:
        advance = progress_bar(stack, f"looking for the images in {root}, once: shards", len(paths))
        for path in paths:
            parts.append(scan_shard(path, os.path.relpath(path, root)))
            advance(len(parts))
    index = ShardIndex.joined(parts)
    if len(index) == 0:
        found = f"{len(index.ignored)} other files, first {index.ignored[0]}" if index.ignored else "they are empty"
        raise UserError(
            f"{paths[0]} and all of {len(paths)} shards hold no image ({found}): "
            "pass shards with files like .jpg or .png in them"
        )
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        index.save(cached)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next run looks through the shards again", cached, error.strerror)
    return ShardImages(root, index)


def cache_path(paths: Sequence[Path]) -> Path:
    """Where the index of other people's shards is kept: among the user's cached files."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(b"\0".join(os.fsencode(path.resolve()) for path in paths)).hexdigest()
    return base / "mgd_ssl" / f"{key[:32]}.index"


def is_current(images: ShardImages) -> bool:
    """Whether every shard has the size, the time, and the header of its last image that it had when it was indexed."""
    rows, shards = images.index.rows, images.index.shards
    ends = np.searchsorted(rows["shard"], np.arange(len(shards)), side="right")  # rows up to each shard's last
    for number, shard in enumerate(shards):
        path = images.root / shard.name
        has_images = ends[number] > (ends[number - 1] if number else 0)
        try:
            with open_regular(path) as file:
                stat = os.fstat(file.fileno())
                if stat.st_size != shard.size or shard.time not in (0, stat.st_mtime_ns):
                    return False
                if has_images and not is_there(file, rows[ends[number] - 1]):
                    return False
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): restore it, or leave it out") from error
    return True


def is_there(file: BinaryIO, row: np.void) -> bool:
    """Whether the header of an image (a row of an index) is where it was in its shard."""
    return mark_of(read_at(file.fileno(), int(row["offset"]), 0)) == row["mark"]

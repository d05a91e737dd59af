"""What is where inside tar shards: written while they are packed, or found by one walk from header to header.

A shard follows the WebDataset convention: members `folder/key.jpg`, `folder/key.cls`, ... with the same path up to the
first dot of the last part, one after the other, are one sample; `.cls` holds its class, a number or a name.
"""

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mgd_ssl.data.folder import PackedNames
from mgd_ssl.data.images import open_regular
from mgd_ssl.files import whole_file

BLOCK = 512  # bytes of a tar header; contents start at multiples of it
VERSION = 2  # of the index file; 1 was without its checksum
ROW = np.dtype(
    [
        ("shard", "<u4"),  # number in `ShardIndex.shards`
        ("offset", "<u8"),  # where the encoded image starts in the shard; its header is the BLOCK before
        ("size", "<u8"),  # of the encoded image in bytes
        ("mark", "<u4"),  # CRC-32 of its header, to tell that it is still there
        ("name_end", "<u8"),  # where its name ends in `ShardIndex.packed`
        ("label", "<i4"),  # number in `ShardIndex.classes`, NO_LABEL without .cls
    ]
)
NO_LABEL = -1
CHECKSUM_BYTES = 4  # at the end of the index file


@dataclass(frozen=True)
class Shard:
    """A tar file when it was indexed."""

    name: str  # path relative to the root
    size: int  # bytes
    time: int  # of its last change, in ns; 0 where the index travels with the shards, whose copies have other times


@dataclass(frozen=True)
class ShardIndex:
    """The images of shards, in the order of the shards and of the members in each."""

    shards: list[Shard]
    rows: np.ndarray  # [n] of ROW
    packed: np.ndarray  # [bytes] uint8, the names of the members one after the other
    classes: list[str]  # what the .cls members hold, as they come
    ignored: list[str]  # members that belong to no image
    path: Path | None = None  # file that holds this index

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> PackedNames:
        """Names of the members."""
        return PackedNames(self.packed, self.rows["name_end"])

    def save(self, path: Path) -> None:
        """Write to a file, whole or not at all.

        Raises:
            OSError: as the file system says.
        """
        about = {
            "version": VERSION,
            "shards": [asdict(shard) for shard in self.shards],
            "classes": self.classes,
            "ignored": self.ignored,
        }
        header = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        with whole_file(path) as file:
            for array in (header, self.rows, self.packed):
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
            end = file.tell()
            file.seek(0)
            file.write(_checksum(file, end))  # which has moved the position to the end

    @classmethod
    def load(cls, path: Path, check: bool = True) -> "ShardIndex":
        """An index whose arrays stay in the file until they are looked at.

        Args:
            path: of the file.
            check: read it once to compare its checksum, unless another process of the run has done so.

        Raises:
            OSError: as the file system says.
            ValueError: when the file is no index, is damaged or cut off, or was written by another version.
        """
        with open_regular(path) as file:
            if check:
                end = os.fstat(file.fileno()).st_size - CHECKSUM_BYTES
                if end < 0 or _checksum(file, end) != file.read():
                    raise ValueError("its checksum is another one, so it is damaged, cut off or of another version")
                file.seek(0)
            about = json.loads(_mapped(file).tobytes())
            if about["version"] != VERSION:
                raise ValueError(f"version {about['version']}")
            rows, packed = _mapped(file), _mapped(file)
        if rows.dtype != ROW or (int(rows["name_end"][-1]) if len(rows) else 0) != len(packed):
            raise ValueError("damaged")
        shards = [Shard(**shard) for shard in about["shards"]]
        return cls(shards, rows, packed, about["classes"], about["ignored"], path)

    @classmethod
    def joined(cls, parts: Sequence["ShardIndex"]) -> "ShardIndex":
        """The images of several indexes, one after the other."""
        classes: dict[str, int] = {}
        rows, shards, bytes_before = [], 0, 0
        for part in parts:
            numbers = np.array([classes.setdefault(name, len(classes)) for name in part.classes] + [NO_LABEL], "<i4")
            shifted = np.array(part.rows)
            shifted["shard"] += shards
            shifted["name_end"] += bytes_before
            shifted["label"] = numbers[shifted["label"]]  # NO_LABEL, -1, is the last of them
            shards, bytes_before = shards + len(part.shards), bytes_before + len(part.packed)
            rows.append(shifted)
        return cls(
            [shard for part in parts for shard in part.shards],
            np.concatenate(rows),
            np.concatenate([part.packed for part in parts]),
            list(classes),
            [name for part in parts for name in part.ignored],
        )


def _checksum(file: BinaryIO, end: int) -> bytes:
    """CRC-32 of the bytes from the file's position to `end`, where it is then."""
    checksum = 0
    while file.tell() < end and (part := file.read(min(2**20, end - file.tell()))):
        checksum = zlib.crc32(part, checksum)
    return checksum.to_bytes(CHECKSUM_BYTES, "little")


def _mapped(file: BinaryIO) -> np.ndarray:
    """The .npy array at a file's position, which moves behind it."""
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = read_header(file)
    start, size = file.tell(), int(np.prod(shape)) * dtype.itemsize
    if os.fstat(file.fileno()).st_size < start + size:
        raise ValueError("cut off")
    array = np.asarray(np.memmap(file, dtype, mode="r", offset=start, shape=shape)) if size else np.empty(shape, dtype)
    file.seek(start + size)
    return array


class IndexBuilder:
    """Collects the images of one shard."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        self._names: list[bytes] = []
        self._bytes = 0
        self._classes: dict[str, int] = {}
        self.ignored: list[str] = []

    def add(self, name: str, offset: int, size: int, label: str | None) -> None:
        """An image: its member's name, where its content starts, how long it is, what its .cls holds."""
        self._names.append(os.fsencode(name))
        self._bytes += len(self._names[-1])
        number = NO_LABEL if label is None else self._classes.setdefault(label, len(self._classes))
        self._rows.append((0, offset, size, 0, self._bytes, number))

    def finish(self, file: BinaryIO, name: str, time: int) -> ShardIndex:
        """The index of the shard, which is the open file; `time` as in `Shard`."""
        rows = np.array(self._rows, dtype=ROW)
        rows["mark"] = [mark_of(read_at(file.fileno(), offset, 0)) for offset in rows["offset"].tolist()]
        packed = np.frombuffer(b"".join(self._names), dtype=np.uint8)
        shard = Shard(name, os.fstat(file.fileno()).st_size, time)
        return ShardIndex([shard], rows, packed, list(self._classes), self.ignored)


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """The header before the content at `offset`, and `size` bytes of the content; less where the file ends before."""
    return os.pread(descriptor, BLOCK + size, offset - BLOCK)


def mark_of(block: bytes) -> int:
    """CRC-32 of the header at the start of a block."""
    return zlib.crc32(block[:BLOCK])


# scanning


def sample_key(name: str) -> str:
    """What the members of one sample share: the path up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]

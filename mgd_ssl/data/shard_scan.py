"""The index of a tar file that has none, from its headers."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mgd_ssl.data.folder import is_image
from mgd_ssl.data.images import open_regular
from mgd_ssl.data.shard_index import BLOCK, IndexBuilder, ShardIndex, sample_key
from mgd_ssl.errors import UserError

LONGEST_CLASS = 1024  # bytes of a .cls member that may be a class


LONGEST_READ = 2**20  # bytes read at once from a tar file for its headers and classes


COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}  # how their files begin


def scan_shard(path: Path, name: str) -> ShardIndex:
    """Walk through a shard, reading headers and classes only.

    Args:
        path: of the tar file.
        name: of the shard in the index.

    Raises:
        UserError: when it is missing, no tar file, compressed, cut off or damaged.
    """
    try:
        with open_regular(path) as file:
            _check_plain(path, file.read(6))
            file.seek(0)
            builder = IndexBuilder()
            with tarfile.open(fileobj=_Sparing(file), mode="r:") as tar:  # type: ignore[call-overload]
                for sample in _samples(tar, os.fstat(file.fileno()).st_size):
                    _add_sample(builder, tar, path, sample)
                _check_end(path, file, tar.offset)
            return builder.finish(file, name, os.fstat(file.fileno()).st_mtime_ns)
    except tarfile.TarError as error:
        raise UserError(f"{path} is no whole tar file ({error}): copy or write it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): restore it, or leave it out") from error
    except (ValueError, ArithmeticError, LookupError, RecursionError) as error:  # tarfile's, of odd headers
        raise UserError(f"{path} is no whole tar file ({type(error).__name__}): copy or write it again") from error


class _Sparing:
    """A tar file whose headers cannot make the memory grow."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        """So many bytes."""
        if not 0 <= size <= LONGEST_READ:
            raise tarfile.ReadError(f"a header tells of {size} bytes of names and the like")
        return self._read(size)


def _check_plain(path: Path, start: bytes) -> None:
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(f"{path} is compressed ({kind}), so images cannot be read at random: unpack it")


def _check_end(path: Path, file: BinaryIO, end: int) -> None:
    """tarfile also stops, without a word, where a header is damaged or the end-of-archive mark is missing."""
    block = os.pread(file.fileno(), BLOCK, end)
    if block != bytes(BLOCK):
        what = "is damaged" if len(block) == BLOCK else "is cut off"
        raise UserError(f"{path} {what} after {end} bytes: copy or write it again")


def _samples(tar: tarfile.TarFile, length: int) -> Iterator[list[tarfile.TarInfo]]:
    """The files of every sample, in the order of the shard, which has `length` bytes."""
    sample: list[tarfile.TarInfo] = []
    before = -1
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep a million of them
        if member.size < 0 or tar.offset <= before:  # it would lead back, for ever
            raise tarfile.ReadError(f"a header tells of {member.size} bytes")
        if tar.offset > length:
            raise tarfile.ReadError("unexpected end of data")
        before = tar.offset
        if member.isdir():
            continue
        if sample and sample_key(sample[0].name) != sample_key(member.name):
            yield sample
            sample = []
        sample.append(member)
    if sample:
        yield sample


def _add_sample(builder: IndexBuilder, tar: tarfile.TarFile, path: Path, sample: list[tarfile.TarInfo]) -> None:
    plain = {member.name: member for member in sample if member.isreg() and not member.issparse()}
    images = [member for name, member in plain.items() if is_image(name)]
    if not images:
        builder.ignored += [f"{path.name}/{member.name}" for member in sample]
        return
    label = None
    for name, member in plain.items():
        if name == f"{sample_key(name)}.cls":
            label = _read_class(tar, path, member)
    for member in images:
        builder.add(member.name.removeprefix("./"), member.offset_data, member.size, label)


def _read_class(tar: tarfile.TarFile, path: Path, member: tarfile.TarInfo) -> str:
    content = tar.extractfile(member)
    assert content is not None  # a regular file
    try:
        label = content.read(LONGEST_CLASS).decode().strip() if member.size <= LONGEST_CLASS else ""
    except UnicodeDecodeError:
        label = ""
    if not label:
        raise UserError(f"{path}: {member.name} is no class (a number or a name as text): write the shard again")
    return label

"""Whether the tables of a feature cache still hold what was written: a CRC of their rows, kept beside them."""

import json
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

ACCOUNT = "account.json"  # beside the tables
BLOCK = 2**24  # bytes read at a time


class Account(NamedTuple):
    """How many rows of the tables `values` and `rows` are whole, and their CRC-32."""

    done: int = 0
    values: int = 0
    rows: int = 0

    def extended(self, values: np.ndarray, rows: np.ndarray) -> "Account":
        """The account with further rows: features [n, d] float32, and where they come from [n] int64."""
        crcs = (
            zlib.crc32(np.ascontiguousarray(new).data.cast("B"), old)
            for new, old in ((values, self.values), (rows, self.rows))
        )
        return Account(self.done + len(rows), *crcs)

    def text(self) -> bytes:
        """As written to `ACCOUNT`."""
        return json.dumps(self._asdict()).encode()


def checked(folder: Path, total: int, mode: Literal["c", "r+"]) -> tuple[Account, np.memmap, np.memmap]:
    """The tables of `total` rows in a folder, mapped, when the rows its account speaks of are what was written.

    The rows are read from the files rather than from the maps, where a disk that fails would kill the process.

    Args:
        folder: with values.npy, rows.npy and `ACCOUNT`.
        total: rows of both tables; the account may speak of fewer.
        mode: of the maps, "c" or "r+".

    Raises:
        ValueError: when a table or the account is damaged.
        OSError: when one is missing or cannot be read.
    """
    try:
        account = Account(**json.loads((folder / ACCOUNT).read_text()))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{ACCOUNT} is damaged") from error
    if not all(type(number) is int for number in account) or not 0 <= account.done <= total:
        raise ValueError(f"{ACCOUNT} is damaged")
    values, rows = (mapped(folder / f"{name}.npy", mode) for name in ("values", "rows"))
    for name, table, dtype, dims in (("values", values, np.float32, 2), ("rows", rows, np.int64, 1)):
        if not (table.dtype == dtype and table.ndim == dims and len(table) == total and table.flags.c_contiguous):
            raise ValueError(f"{name}.npy has another form")
        if crc_of(folder / f"{name}.npy", table.offset, account.done * table.strides[0]) != getattr(account, name):
            raise ValueError(f"{name}.npy is not what was written")
    return account, values, rows


def mapped(path: Path, mode: Literal["c", "r+"]) -> np.memmap:
    """A table on disk, mapped.

    Raises:
        ValueError: when its head is damaged, or it is shorter than its head says.
        OSError: when it is missing or cannot be read.
    """
    try:
        table = np.load(path, mmap_mode=mode)
    except OSError:
        raise
    except Exception as error:  # numpy raises anything: EOFError, BadZipFile, TokenError, ...
        raise ValueError(f"{path.name} has no whole head ({error})") from error
    if not isinstance(table, np.memmap):
        raise ValueError(f"{path.name} is no table")
    return table


def crc_of(path: Path, start: int, count: int) -> int:
    """CRC-32 of `count` bytes of a file from `start` on; of fewer where it ends before."""
    crc, buffer = 0, memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while count and (length := file.readinto(buffer[: min(count, BLOCK)])):
            crc, count = zlib.crc32(buffer[:length], crc), count - length
    return crc

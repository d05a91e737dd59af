"""Rows that are appended to a file as they are computed, and are whole again after any end of the process."""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mgd_ssl.errors import UserError
from mgd_ssl.files import ELSEWHERE, Appended, write_whole, writing
from mgd_ssl.run.lock import take

READ_AT_ONCE = 2**24  # bytes


class UnfinishedRows:
    """Rows of one width in a folder of their own, until they are finished.

    Args:
        folder: made if need be.
        key: of all that the rows depend on; others are thrown away.
        dtype: of the numbers.

    Raises:
        UserError: when another process writes there.
        DiskError: when it cannot be written, here and in `append`.
    """

    def __init__(self, folder: Path, key: str, dtype: DTypeLike = np.float32) -> None:
        self.folder, self.key, self.dtype = folder, key, np.dtype(dtype)
        with writing(folder, ELSEWHERE, at_start=True):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
            if not take(self._lock):
                self._lock.close()
                raise UserError(f"{folder} is written by another process: wait for it, or choose another --out")
            found = self._account()
            self._rows = Appended(folder / "rows")
            self.done, self.shape, self._crc, self.unreadable = self._whole(found)
            self._rows.cut(self.done * self._width * self.dtype.itemsize)

    @property
    def path(self) -> Path:
        """Of the file with the rows."""
        return self._rows.path

    @property
    def _width(self) -> int:
        return int(np.prod(self.shape))

    def append(self, rows: np.ndarray, shape: tuple[int, ...], unreadable: dict[str, str]) -> None:
        """Add rows [m, d]; they are there for good when it returns.

        Args:
            rows: become of the file's dtype.
            shape: of one row, d in all.
            unreadable: files among them that could not be read, and why.
        """
        content = np.ascontiguousarray(rows, dtype=self.dtype).tobytes()
        with writing(self.folder, ELSEWHERE):
            self._rows.append(content)
            self._rows.sync()
            self.shape, self._crc = shape, zlib.crc32(content, self._crc)
            self.done += len(rows)
            self.unreadable |= unreadable
            account = {"key": self.key, "done": self.done, "shape": list(shape), "crc": self._crc}
            write_whole(self.folder / "account", json.dumps(account | {"unreadable": self.unreadable}).encode())

    def table(self) -> np.ndarray:
        """All rows [n, d], mapped."""
        return np.memmap(self.path, self.dtype, "r", shape=(self.done, self._width))

    def close(self) -> None:
        """Let others go on with it."""
        self._rows.close()
        self._lock.close()

    def discard(self) -> None:
        """Remove it."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _account(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "account").read_text())
            return found if found["key"] == self.key else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    def _whole(self, found: dict[str, Any]) -> tuple[int, tuple[int, ...], int, dict[str, str]]:
        """What an account says, if the rows are what was written; else that there is nothing."""
        nothing: tuple[int, tuple[int, ...], int, dict[str, str]] = 0, (0,), 0, {}
        try:
            done, shape, crc, unreadable = (found[name] for name in ("done", "shape", "crc", "unreadable"))
            left, seen = done * int(np.prod(shape)) * self.dtype.itemsize, 0
            with (self.folder / "rows").open("rb") as file:
                while left and (piece := file.read(min(left, READ_AT_ONCE))):
                    seen, left = zlib.crc32(piece, seen), left - len(piece)
            return nothing if left or seen != crc else (done, tuple(shape), crc, unreadable)
        except (OSError, ValueError, LookupError, TypeError):
            return nothing

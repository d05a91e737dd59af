"""metrics.jsonl: rows written whole, cut back to the checkpoint a run continues from, and read by others."""

import json
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from mgd_ssl.errors import UserError
from mgd_ssl.files import Appended

Rows = list[dict[str, Any]]
WORDS = ("kind", "protocol")  # what is text in a row of metrics.jsonl
REQUIRED = {
    "train": ("epoch", "loss", "lr", "images_per_second", "data_wait"),
    "knn": ("top1", "top5", "protocol"),
    "matching": ("epoch",),
    "validation": ("epoch", "top1", "top5", "best_top1", "best_top5"),
}  # what the report reads of a row of metrics.jsonl; other kinds are not its business


class MetricsFile:
    """The rows of a run (`{"kind": ..., "step": ..., ...}` a line), open for more.

    What was written after the checkpoint is cut off, so that nothing occurs twice. After a power cut the file may be
    shorter than it was at the checkpoint: then its whole rows stay, and `complaint` says what is missing.

    Args:
        path: of the file.
        step: of the checkpoint, 0 without one.
        num_bytes: length of the file at the checkpoint.

    Raises:
        OSError: as the file system says, here and in all methods.
    """

    def __init__(self, path: Path, step: int, num_bytes: int) -> None:
        content = path.read_bytes()[:num_bytes] if num_bytes and path.exists() else b""
        *lines, _ = content.split(b"\n")  # the last is empty, or cut off
        while lines and not 0 <= step_of(lines[-1]) <= step:  # damaged, or of an earlier attempt at later steps
            lines.pop()
        kept = sum(len(line) + 1 for line in lines)
        self._file = Appended(path)
        self._file.cut(kept)
        newest = list(takewhile(lambda line: step_of(line) == step, reversed(lines)))
        self.rows = [json.loads(line) for line in reversed(newest)]  # those of the checkpoint's step
        self.complaint = ""
        if kept < num_bytes:
            since = f"what followed the row of step {step_of(lines[-1])}" if lines else "every row"
            self.complaint = (
                f"{path} lacks {num_bytes - kept} bytes it had at the checkpoint of step {step}, as after a power cut: "
                f"{since} is missing, which the training does not need"
            )

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        self._file.append((json.dumps(row) + "\n").encode())

    def synced_bytes(self) -> int:
        """The length so far, once all of it survives a power cut."""
        self._file.sync()
        return self._file.size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def step_of(line: bytes) -> int:
    """The step of a row, -1 when the line is none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


def read_metrics(path: Path) -> Rows:
    """Rows of metrics.jsonl; a last line that is still being written is left out.

    Raises:
        UserError: when another line is damaged, or the file cannot be read.
    """
    try:
        # not splitlines, which also splits at characters that JSON allows inside text
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    rows: Rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() and number == len(lines):
            break
        try:
            rows.append(checked_row(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if any(rest.strip() for rest in lines[number:]):
                raise UserError(f"line {number} of {path} is damaged: mend or remove it") from error
    return rows


def checked_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl that has what the report reads.

    Raises:
        KeyError, TypeError: when it has not.
    """
    known = REQUIRED.get(row["kind"])
    for key in ("kind", "step", *(known or ())):
        if row[key] is None:
            raise TypeError(key)
    for key, value in row.items() if known else [("step", row["step"])]:
        if key in WORDS:
            right = isinstance(value, str)
        elif value is None:
            right = row["kind"] == "matching"  # before the first update there are no costs
        else:
            right = type(value) is float or (type(value) is int and abs(value) < 2**63)
        if not right:
            raise TypeError(key)
    return row

"""metrics.jsonl: rows written whole, cut back to the checkpoint a run continues from."""

import json
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from mgd_ssl.files import Appended


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

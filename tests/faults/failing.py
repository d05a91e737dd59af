"""Writers that meet a disk that fails, and the sentence a command has to end with."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.disk import Disk
from tests.runs import tiny

Patch = pytest.MonkeyPatch
Captured = pytest.CaptureFixture[str]


def settings_of(images: Path, out: Path) -> dict[str, Any]:
    return tiny(images, out, data={"max_unreadable": 0.5}, runtime={"log_every": 1})


class Refused:
    """A file of which the disk takes half a write, and then nothing more."""

    def __init__(self, file: Any, number: int) -> None:
        self.file, self.number = file, number
        self.halves = number == errno.ENOSPC

    def write(self, content: memoryview) -> int:
        if not self.halves:
            raise OSError(self.number, os.strerror(self.number))
        self.halves = False
        return int(self.file.write(content[: len(content) // 2]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def refuse(writer: object, disk: Disk, fault: str) -> None:
    """Files that are open for long meet a real fault only at the end of a page, so theirs are made."""
    number = {"full": errno.ENOSPC, "read-only": errno.EROFS}.get(fault)
    appended = getattr(writer, "_file", None)
    if disk.mounted and number and appended is not None:
        appended._file = Refused(appended._file, number)


def strike(patch: Patch, writer: tuple[Any, str, int], fault: Callable[[object], None]) -> list[int]:
    """Have the fault happen right before a call of a writer; returns what the calls are counted in."""
    owner, name, at = writer
    original, calls = getattr(owner, name), list[int]()

    def struck_before(*args: Any) -> Any:
        calls.append(at)
        if len(calls) == at:
            fault(args[0])
        return original(*args)

    patch.setattr(owner, name, struck_before)
    return calls


def one_sentence(code: int, told: str, expected: int = 3) -> str:
    """The sentence a command ended with."""
    assert code == expected, told
    lines = [line for line in told.splitlines() if line.startswith("mgd-ssl: ")]
    assert len(lines) == 1 and lines[0] == told.splitlines()[-1], told
    assert "Traceback" not in told and "Exception" not in told
    return lines[0]

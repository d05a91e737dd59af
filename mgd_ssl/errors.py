"""Errors for the user: one sentence that names the value and the remedy, shown without a traceback."""

import difflib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mgd_ssl.printable import printable


class UserError(Exception):
    """Something the user can mend: a path, a setting, a full disk."""


class TrainingError(UserError):
    """Training had to stop; what was saved before stays."""


@contextmanager
def once_trained(steps: Callable[[], int]) -> Iterator[None]:
    """What is at fault after steps were taken has changed since the start, and those steps may be lost: in the block a
    UserError then becomes a TrainingError, whose exit code says so.

    Args:
        steps: number of finished steps.

    Raises:
        TrainingError: after the first step.
    """
    try:
        yield
    except UserError as error:
        if isinstance(error, TrainingError) or not steps():
            raise
        raise TrainingError(str(error)) from error


INTERRUPTED = 75  # exit code of a program that ended with `Interrupted` (EX_TEMPFAIL: try again)


class Interrupted(Exception):
    """A signal stopped the work after its state was saved; the same settings continue it.

    Args:
        message: one sentence.
        signal_number: of the signal, the same on all ranks.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def nearest(word: str, known: list[str]) -> str:
    """`, did you mean 'x'?` for the closest of the known words, or an empty string."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}?" if matches else ""


def exit_code(program: Callable[[], int | None]) -> int:
    """Run a program; its errors become one sentence on stderr (of rank 0) and an exit code.

    Returns:
        What the program returns (0 for nothing), 2 for bad input, 3 when training stopped, 75 when it was interrupted
        and saved.
    """
    try:
        return program() or 0
    except (Interrupted, UserError) as error:
        if os.environ.get("RANK", "0") == "0":
            with suppress(OSError):  # stderr may be a file on the very disk that is full
                print(f"mgd-ssl: {printable(error)}", file=sys.stderr)
        return code_of(error)


def code_of(error: BaseException) -> int:
    """Exit code of a program that ended with this error: as `exit_code` says, 1 for those nobody expected."""
    if isinstance(error, Interrupted):
        return INTERRUPTED
    if isinstance(error, UserError):
        return 3 if isinstance(error, TrainingError) else 2
    return 1

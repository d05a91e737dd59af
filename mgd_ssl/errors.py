"""Errors for the user: one sentence that names the value and the remedy, shown without a traceback."""

import difflib
import errno
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
        super().__init__(message, signal_number)  # both, as pickling wants it
        self.signal_number = signal_number

    def __str__(self) -> str:
        return str(self.args[0])


class RankZeroError(Exception):
    """Rank 0 failed in a way nobody expected; raised on all other ranks, which end with it, while rank 0 raises the
    error itself."""


def nearest(word: str, known: list[str]) -> str:
    """`, did you mean 'x'?` for the closest of the known words, or an empty string."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}?" if matches else ""


OUT_OF_FILES = ("Too many open files", "items of ancdata")  # the latter of Python, when it cannot take a file over


def out_of_files(error: BaseException) -> TrainingError | None:
    """The sentence for an error that comes from too many open files, None for any other."""
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        if number in (errno.EMFILE, errno.ENFILE) or any(words in str(seen) for words in OUT_OF_FILES):
            import resource  # which Windows does not have

            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return TrainingError(f"too many files are open (ulimit -n is {limit}): raise it, or lower data.workers")
        seen = seen.__cause__ or seen.__context__
    return None


def mixed_builds(error: BaseException) -> UserError | None:
    """The sentence for a torchvision that was built for another torch, None for any other error.

    Its operators are then missing, which importing it notices. PyPI's torchvision beside a torch for CPUs is one.
    """
    if not (isinstance(error, RuntimeError) and str(error).startswith("operator torchvision::")):
        return None
    return UserError(
        f"torchvision was built for another torch ({error}): install both anew from one place, as by pip install "
        "--force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu"
    )


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
            say(f"mgd-ssl: {printable(error)}")
        return code_of(error)
    except RankZeroError as error:  # whose traceback says nothing
        say(f"mgd-ssl: {error} (told on rank {os.environ.get('RANK')})")
        return 1
    except Exception as error:
        if (told := out_of_files(error) or mixed_builds(error)) is None:
            raise
        say(f"mgd-ssl: {told}")
        return code_of(told)


def say(sentence: str) -> None:
    """Write a line to stderr; the terminal may have been closed."""
    with suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


def code_of(error: BaseException) -> int:
    """Exit code of a program that ended with this error: as `exit_code` says, 1 for those nobody expected."""
    if isinstance(error, Interrupted):
        return INTERRUPTED
    if isinstance(error, UserError):
        return 3 if isinstance(error, TrainingError) else 2
    return 1

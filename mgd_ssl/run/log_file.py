"""log.txt of a run: every message, and why the run ended when it did not finish."""

import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mgd_ssl.errors import Interrupted, UserError
from mgd_ssl.files import Appended, writing
from moco.dist import rank

NAME = "log.txt"
TOLD = "_told_in_log"  # mark of an error that is in the log already


class LogFile(logging.Handler):
    """Messages into log.txt.

    A message that cannot be written does not raise where it is logged, which may be anywhere, but in `check`.

    Args:
        folder: of the run.

    Raises:
        OSError: as the file system says.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.path = folder / NAME
        self._file = Appended(self.path)
        self._error: OSError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message; the first error is kept for `check`."""
        try:
            self._file.append((self.format(record) + "\n").encode(errors="backslashreplace"))
        except OSError as error:
            self._error = self._error or error

    def check(self) -> None:
        """Raise DiskError when a message could not be written."""
        if self._error is not None:
            with writing(self.path):
                raise self._error

    def end(self, error: BaseException) -> None:
        """Say why the run ended: a sentence, or the traceback of an error nobody expected; once for every error."""
        if getattr(error, TOLD, False):
            return
        expected = isinstance(error, Interrupted | UserError)
        told = str(error) if expected else "".join(traceback.format_exception(error)).rstrip()
        level = logging.WARNING if isinstance(error, Interrupted) else logging.ERROR
        self.emit(logging.LogRecord(NAME, level, "", 0, told, None, None))
        setattr(error, TOLD, True)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.close()
        super().close()


@contextmanager
def ending_told(folder: Path, others: frozenset[str] = frozenset()) -> Iterator[None]:
    """Have log.txt say why the block failed, where no open log has told it: of a start above all.

    Args:
        folder: of the run; when it is not there, or holds something else than a run, nothing is written.
        others: names in it that may be there before the run.
    """
    try:
        yield
    except BaseException as error:
        first = rank() == 0 and os.environ.get("RANK", "0") == "0"  # also where the ranks have not met
        with suppress(OSError):
            if first and not getattr(error, TOLD, False) and is_free(folder, others):
                file = LogFile(folder)
                file.end(error)
                file.close()
        raise


def is_free(folder: Path, others: frozenset[str] = frozenset()) -> bool:
    """Whether a folder is there and holds a run, or nothing yet."""
    if not folder.is_dir():
        return False
    names = {name for name in os.listdir(folder) if not name.startswith(".")}
    return "config.json" in names or not names - others - {NAME}

"""Temporary files of processes that were killed while they wrote them, told from those that are being written."""

import fcntl
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

NAME = re.compile(r"\.(?P<of>.+)\.\d+\.tmp")  # as `whole_file` calls them


def claimed(path: Path) -> BinaryIO:
    """A new file that is locked while it is open, so for as long as the process lives at most.

    Raises:
        OSError: as the file system says.
    """
    while True:
        file = path.open("w+b")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # it is just being swept
            file.close()
            time.sleep(0.01)
            continue
        except OSError:  # a file system without locks, where nothing is swept either
            return file
        if path.exists():
            return file
        file.close()


def sweep(folder: Path, of: str | None = None) -> None:
    """Remove the temporary files in a folder that nobody writes any more; one that cannot be removed stays.

    Args:
        folder: which may be absent.
        of: only those of the file of this name; needed where the folder is not ours alone.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            match = NAME.fullmatch(path.name)
            if match and of in (None, match["of"]):
                _remove_unless_claimed(path)


def _remove_unless_claimed(path: Path) -> None:
    with suppress(OSError), path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()

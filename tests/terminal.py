"""A real terminal for the tests of what is shown in one."""

import os
import pty
import re
import threading
from pathlib import Path

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ENV = {"TERM": "xterm-256color", "COLUMNS": "160", "LINES": "50"}  # for the process


class Terminal:
    """A pseudo-terminal; what is written to `path` is read at once, as by someone who looks at it."""

    def __init__(self) -> None:
        self.master, self._slave = pty.openpty()
        self.path = Path(os.ttyname(self._slave))
        self._read = b""
        self._reader = threading.Thread(target=self._look, daemon=True)
        self._reader.start()

    def _look(self) -> None:
        while True:
            try:
                more = os.read(self.master, 65536)
            except OSError:  # closed
                return
            self._read += more

    @property
    def shown(self) -> str:
        """All that was ever shown, without control sequences."""
        return CONTROL.sub("", self._read.decode(errors="replace"))

    def close(self) -> None:
        """As a terminal's window that is closed: writing to it fails from now on."""
        os.close(self._slave)
        os.close(self.master)

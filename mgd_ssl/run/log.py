"""What a run tells: messages, progress, metrics.jsonl and TensorBoard scalars, all from rank 0."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from mgd_ssl.files import DiskError, writing
from mgd_ssl.printable import printable
from mgd_ssl.run.event_file import EventFile
from mgd_ssl.run.log_file import LogFile
from mgd_ssl.run.metrics import MetricsFile
from mgd_ssl.run.runtime import on_rank_zero
from mgd_ssl.run.sinks.sink import Guarded, check_installed, open_sinks
from moco.dist import rank


def _escape(record: logging.LogRecord) -> bool:
    """What is logged may name files, classes and runs of others: nothing in them acts on a terminal or ends a line."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


logger = logging.getLogger("mgd_ssl")
logger.addFilter(_escape)
PLAIN_SECONDS = 20  # between two progress lines where there is no terminal


class RunLog:
    """Open log of a run; a context manager.

    Args:
        folder: of the run, which must exist on rank 0.
        total_steps: length of the run.
        first_step: where it starts.
        metrics_bytes: length of metrics.jsonl at the checkpoint the run continues from: what was written after it
            is cut off, so that nothing occurs twice.
        sinks: names of services that get the rows too.
    """

    def __init__(
        self, folder: Path, total_steps: int, first_step: int, metrics_bytes: int = 0, sinks: Sequence[str] = ()
    ) -> None:
        self.active = rank() == 0
        self.folder, self.total_steps, self.first_step = folder, total_steps, first_step
        self._metrics_bytes, self._names = metrics_bytes, sinks
        self._sinks: list[Guarded] = []
        self._console = Console(stderr=True)
        self._live: Live | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> "RunLog":
        logger.setLevel(logging.INFO)
        logger.propagate = False
        on_rank_zero(self._open_files)
        if not self.active:
            self._handlers: list[logging.Handler] = [logging.NullHandler()]
        else:
            self._handlers = [self._file, _ConsoleHandler(self._console)]
            if self._console.is_terminal:
                self._bar = Progress(
                    TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                    TextColumn("{task.fields[unit]},"), TimeElapsedColumn(), TextColumn("gone{task.fields[left]}"),
                )  # fmt: skip
                self._task = self._bar.add_task(
                    escape(printable(self.folder.name)),
                    total=self.total_steps,
                    completed=self.first_step,
                    unit="steps",
                    left="",
                )
                # stdout and stderr stay as they are: whoever writes to them never waits for the display
                self._live = Live(
                    self._bar, console=self._console, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False
                )
                self._live.start()
        for handler in self._handlers:
            logger.addHandler(handler)
        self._showwarning, warnings.showwarning = warnings.showwarning, self._note_warning
        if self.active:
            if self._metrics.complaint:
                logger.warning("%s", self._metrics.complaint)
            self._sinks = open_sinks(self._names, self.folder)
        return self

    def _note_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Write a warning to log.txt and not to the screen, where it would tear the display."""
        text = f"{category.__name__}: {' '.join(str(message).split())} ({filename}:{lineno})"
        self._handlers[0].handle(logging.LogRecord("py.warnings", logging.WARNING, filename, lineno, text, None, None))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        warnings.showwarning = self._showwarning
        if self._live is not None:
            with suppress(OSError):  # of a terminal that was closed
                self._live.stop()
        if self.active:
            if error is not None:
                self._file.end(error)
            for opened in (self._metrics, self._scalars):
                with suppress(OSError):  # what must be on the disk was synced; the rest is no reason to fail at the end
                    opened.close()
            for sink in self._sinks:
                sink.close()
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()

    def _open_files(self) -> None:
        check_installed(self._names)
        path = self.folder / "metrics.jsonl"
        with writing(self.folder / "log.txt"):
            self._file = LogFile(self.folder)
        try:
            with writing(path):
                self._metrics = MetricsFile(path, self.first_step, self._metrics_bytes)
            with writing(self.folder / "tensorboard"):
                self._scalars = EventFile(self.folder / "tensorboard", self.first_step, self._metrics.rows)
        except DiskError as error:
            self._file.end(error)
            raise

    def synced_bytes(self) -> int:
        """Length of metrics.jsonl, which all of survives a power cut now; 0 on other ranks.

        Raises:
            DiskError: when it does not, or a message could not be written.
        """
        if not self.active:
            return 0
        self._file.check()
        with writing(self.folder / "metrics.jsonl"):
            return self._metrics.synced_bytes()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl (`{"kind": ..., "step": ..., ...}`), and its numbers as TensorBoard scalars.

        Raises:
            DiskError: when the disk does not take them, or a message before.
        """
        if not self.active:
            return
        self._file.check()
        row = {"kind": kind, "step": step, **values}
        with writing(self.folder / "metrics.jsonl"):
            self._metrics.write(row)
        with writing(self.folder / "tensorboard"):
            self._scalars.add(row)
        for sink in self._sinks:
            sink.add(row)

    def progress(self, step: int, numbers: str, left: str = "") -> None:
        """Show where training is: a bar in a terminal, a line now and then elsewhere; `left` is of `TimeLeft.told`."""
        if not self.active:
            return
        if self._live is not None:
            self._bar.update(self._task, completed=step, left=f", {left}" if left else "")
            self._live.update(Group(self._bar, Text(numbers)))
        elif time.monotonic() - self._last_line > PLAIN_SECONDS or step == self.total_steps:
            self._last_line = time.monotonic()
            logger.info("step %d of %d%s: %s", step, self.total_steps, f", {left}" if left else "", numbers)

    @contextmanager
    def part(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of work between two steps; yields what to call with the number of images done.

        Args:
            what: it is.
            total: images.
        """
        if self._live is None:
            yield lambda done: self._part_line(what, done, total)
            return
        task = self._bar.add_task(what, total=total, unit="images", left="")
        try:
            yield lambda done: self._bar.update(task, completed=done)
        finally:
            self._bar.remove_task(task)

    def _part_line(self, what: str, done: int, total: int) -> None:
        if self.active and time.monotonic() - self._last_line > PLAIN_SECONDS:
            self._last_line = time.monotonic()
            logger.info("%s: %d of %d images", what, done, total)


class _ConsoleHandler(logging.Handler):
    """Messages above the progress bar; that nobody can read them any more does not end the training."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        wrap = not self.console.is_terminal  # a file gets whole lines
        with suppress(OSError, SystemExit):  # the latter is rich's, for a closed pipe
            self.console.print(record.getMessage(), style=style, markup=False, highlight=False, soft_wrap=wrap)

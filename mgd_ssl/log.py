"""What a run tells: messages, progress, metrics.jsonl and TensorBoard scalars, all from rank 0."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter

from mgd_ssl.errors import TrainingError
from mgd_ssl.printable import printable
from moco.dist import rank


def _escape(record: logging.LogRecord) -> bool:
    """What is logged may name files, classes and runs of others: nothing in them acts on a terminal or ends a line."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


logger = logging.getLogger("mgd_ssl")
logger.addFilter(_escape)
PLAIN_SECONDS = 20  # between two progress lines where there is no terminal


def progress_bar(stack: ExitStack, description: str, total: int) -> Callable[[int], None]:
    """What to call with the number of things done, on rank 0 of a terminal a bar that ends with the stack."""
    console = Console(stderr=True)
    if rank() != 0 or not console.is_terminal:
        return lambda done: None
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    progress = stack.enter_context(Progress(*columns, console=console))
    task = progress.add_task(description, total=total)
    return lambda done: progress.update(task, completed=done)


class RunLog:
    """Open log of a run; a context manager.

    Args:
        folder: of the run, which must exist on rank 0.
        total_steps: length of the run.
        first_step: where it starts.
        metrics_bytes: length of metrics.jsonl at the checkpoint the run continues from: what was written after it
            is cut off, so that nothing occurs twice.
    """

    def __init__(self, folder: Path, total_steps: int, first_step: int, metrics_bytes: int = 0) -> None:
        self.active = rank() == 0
        self.folder, self.total_steps, self.first_step = folder, total_steps, first_step
        self._metrics_bytes = metrics_bytes
        self._console = Console(stderr=True)
        self._live: Live | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "RunLog":
        logger.setLevel(logging.INFO)
        logger.propagate = False
        if not self.active:
            self._handlers: list[logging.Handler] = [logging.NullHandler()]
        else:
            self._open_metrics()
            file = logging.FileHandler(self.folder / "log.txt")
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            self._handlers = [file, _ConsoleHandler(self._console)]
            if self._console.is_terminal:
                self._bar = Progress(
                    TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps,"),
                    TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left"),
                )  # fmt: skip
                self._task = self._bar.add_task(
                    escape(printable(self.folder.name)), total=self.total_steps, completed=self.first_step
                )
                self._live = Live(self._bar, console=self._console, refresh_per_second=4)
                self._live.start()
        for handler in self._handlers:
            logger.addHandler(handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            with suppress(OSError):  # of a terminal that was closed
                self._live.stop()
        if self.active:
            self._metrics.close()
            self._scalars.close()
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()

    def _open_metrics(self) -> None:
        path = self.folder / "metrics.jsonl"
        if path.exists():
            os.truncate(path, min(self._metrics_bytes, path.stat().st_size))
        self._metrics = path.open("a")
        self._scalars = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.first_step)

    @property
    def metrics_bytes(self) -> int:
        """Length of metrics.jsonl so far, 0 on other ranks."""
        return self._metrics.tell() if self.active else 0

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl (`{"kind": ..., "step": ..., ...}`), and its numbers as TensorBoard scalars."""
        if not self.active:
            return
        try:
            self._metrics.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._metrics.flush()
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._scalars.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            raise TrainingError(
                f"{self.folder / 'metrics.jsonl'} cannot be written ({error.strerror}): make room, "
                "then run the same command again"
            ) from error

    def progress(self, step: int, numbers: str) -> None:
        """Show where training is: a bar in a terminal, a line now and then elsewhere."""
        if not self.active:
            return
        if self._live is not None:
            self._bar.update(self._task, completed=step)
            self._live.update(Group(self._bar, Text(numbers)))
        elif time.monotonic() - self._last_line > PLAIN_SECONDS or step == self.total_steps:
            self._last_line = time.monotonic()
            logger.info("step %d of %d, %s left: %s", step, self.total_steps, self._time_left(step), numbers)

    def _time_left(self, step: int) -> str:
        per_step = (time.monotonic() - self._started) / max(1, step - self.first_step)
        minutes, seconds = divmod(round(per_step * (self.total_steps - step)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}"


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

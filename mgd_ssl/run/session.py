"""An open run: its newest state, its log, what is measured between two rows of it, and how it stops and is saved."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from mgd_ssl.run.checkpoint import FORMAT, Checkpoints, taken_over
from mgd_ssl.run.log import RunLog, logger
from mgd_ssl.run.runtime import Runtime, on_rank_zero
from mgd_ssl.run.stop import StopRequest


class Account(Protocol):
    """Of files that cannot be read."""

    def share(self) -> None:
        """Compare notes over the ranks; may raise on all of them."""
        ...


class Session:
    """One process's view of a run in its folder; a context manager.

    Args:
        out: the run's folder, opened for this run alone (see `run_folder`).
        total_steps: length of the run.
        runtime: device and precision.
        keep: newest checkpoints kept.
        sinks: names of services that get its rows too.
    """

    def __init__(self, out: Path, total_steps: int, runtime: Runtime, keep: int = 2, sinks: Sequence[str] = ()) -> None:
        self.out, self.total_steps, self.runtime = out, total_steps, runtime
        self.step = 0  # finished steps
        self.accounts: list[Account] = []
        self.stop: StopRequest | None = None  # while it listens
        self.state: dict[str, Any] | None = None  # the newest one that was saved
        self._checkpoints, self._sinks = Checkpoints(out / "checkpoints", keep), sinks
        self._stack = ExitStack()

    def __enter__(self) -> "Session":
        complaints: list[str] = []
        newest = self._newest = on_rank_zero(lambda: self._checkpoints.newest_whole(complaints.append))
        if newest is not None:
            self.state = self._checkpoints.read(newest)
            self.step = self.state["step"]
        metrics_bytes = self.state["metrics_bytes"] if self.state else 0
        self.log = self._stack.enter_context(RunLog(self.out, self.total_steps, self.step, metrics_bytes, self._sinks))
        for complaint in complaints:
            logger.warning("%s", complaint)
        if newest is not None:
            logger.info("continuing after step %d of %d, from %s", self.step, self.total_steps, newest)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def taking_over(self) -> AbstractContextManager[None]:
        """A block that takes over the saved state; that it does not fit becomes one sentence."""
        return nullcontext() if self._newest is None else taken_over(self._newest)

    def kept(self) -> str:
        """What remains when training stops: `the last checkpoint, PATH, is kept`, or that there is none."""
        return self._checkpoints.kept()

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Obey signals that ask to stop inside the block."""
        with StopRequest().listening() as self.stop:
            try:
                yield self.stop
            finally:
                self.stop.finish()
                self.stop = None

    def row(self, kind: str, values: dict[str, Any]) -> None:
        """A row of metrics.jsonl at the current step."""
        self.log.write(kind, self.step, values)

    def share_accounts(self) -> None:
        """Compare the ranks' notes of unreadable files."""
        for account in self.accounts:
            account.share()

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint of the current step; returns on all ranks when it is whole."""
        whole = {"format": FORMAT, "step": self.step, **state}
        on_rank_zero(lambda: self._checkpoints.save(self.step, whole | {"metrics_bytes": self.log.synced_bytes()}))

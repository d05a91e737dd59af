"""`mgd-ssl launch local`: a command in several processes of this host, through torch's elastic launcher."""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from launchers.config import LocalConfig
from launchers.outcome import cause
from launchers.records import Records, Submission
from mgd_ssl.errors import INTERRUPTED

SAVE_SECONDS = 600  # the launcher waits for processes that finish a step and save, before it kills them


def launch_local(config: LocalConfig, command: Sequence[str], run: Path) -> int:
    """Run a command in `config.procs` processes, to its end.

    Args:
        config: how.
        command: its name and arguments.
        run: folder it writes to.

    Returns:
        The command's exit code, that of the process that failed first, or 75.
    """
    records = Records.new(run)
    records.write(Submission("local", list(command), "", config.procs, []))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVE_SECONDS))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say ourselves what failed
    elastic = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.procs,
        run_id=records.folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        max_restarts=config.restarts,
    )
    args = ["-u", "-m", "launchers.process", str(records.folder), *command]
    failed: ChildFailedError | None = None
    try:
        with user_signal_as_sigterm():
            elastic_launch(elastic, sys.executable)(*args)
    except SignalException:
        pass
    except ChildFailedError as error:
        failed = error
    end = records.end()
    if end is not None and end.code in (0, INTERRUPTED):
        return end.code
    failures = records.failures()
    if failures:
        print(cause(failures[0], config.procs), file=sys.stderr)
        return failures[0].code
    if failed is not None:
        rank, failure = failed.get_first_failure()
        print(f"mgd-ssl: rank {rank} ended without a word: {failure.message}", file=sys.stderr)
        return 1
    print("mgd-ssl: stopped before anything was saved: the same command starts again", file=sys.stderr)
    return INTERRUPTED


@contextmanager
def user_signal_as_sigterm() -> Iterator[None]:
    """Inside the block SIGUSR2, which torch's launcher would die of, is passed on to the processes as SIGTERM."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGUSR2, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, previous)

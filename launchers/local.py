"""`mgd-ssl launch local`: a command in several processes of this host, through torch's elastic launcher."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from launchers.config import LocalConfig
from launchers.outcome import Outcome, cause
from launchers.process_local import LAUNCHER
from launchers.records import Records, Submission
from mgd_ssl.errors import INTERRUPTED
from mgd_ssl.printable import printable_lines

SIGTERM = signal.SIGTERM.value
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
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVE_SECONDS))
    # a store that outlives a restart would hand the new processes the addresses of the old ones
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say ourselves what failed
    # the other signals are passed on; older versions of torch have no such setting, and take them all
    told = "signals_to_handle" in LaunchConfig.__dataclass_fields__
    signals: dict[str, Any] = {"signals_to_handle": "SIGTERM,SIGQUIT"} if told else {}
    elastic = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.procs,
        run_id=records.folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        max_restarts=config.restarts,
        **signals,
    )
    args = ["-u", "-m", "launchers.process_local", str(records.folder), *command]
    children: Mapping[int, ProcessFailure] = {}
    try:
        with as_sigterm(signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
            elastic_launch(elastic, sys.executable)(*args)
    except SignalException:
        pass
    except ChildFailedError as error:
        children = error.failures
    ended = local_outcome(records, children)
    if ended.told:
        print(printable_lines(ended.told), file=sys.stderr)
    return ended.code


def local_outcome(records: Records, children: Mapping[int, ProcessFailure]) -> Outcome:
    """How a job ended; nothing to tell where rank 0 has told it.

    Args:
        records: of the job.
        children: processes that ended badly, by their local rank.
    """
    end, failures, num_tasks = records.end(), records.failures(), records.submission().num_tasks
    if end is not None and end.code in (0, INTERRUPTED):
        return Outcome(end.code, "")
    # those torch ends with SIGTERM are victims of the first
    killed = [rank for rank, child in sorted(children.items()) if child.exitcode < 0 and -child.exitcode != SIGTERM]
    if killed and (not failures or failures[0].connection):
        name = signal.Signals(-children[killed[0]].exitcode).name
        return Outcome(1, f"mgd-ssl: rank {killed[0]} was killed by {name}: the same command continues from before")
    if failures:
        return Outcome(failures[0].code, cause(failures[0], num_tasks))
    told = [child.exitcode for child in children.values() if child.exitcode in (2, 3)]
    if told:  # on stderr: the disk that ended it did not take its record
        return Outcome(told[0], "")
    if children:
        return Outcome(1, f"mgd-ssl: rank {min(children)} ended without a word: start the command without a launcher")
    return Outcome(
        INTERRUPTED, "mgd-ssl: stopped without saving: the same command continues from what was saved before"
    )


def kill_children() -> None:
    """End the processes at once; they lie in sessions of their own, where no Ctrl-C reaches them."""
    if not Path("/proc").is_dir():  # macOS
        for child in multiprocessing.active_children():
            child.kill()
        return
    for pid in Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split():
        os.kill(int(pid), signal.SIGKILL)


@contextmanager
def as_sigterm(*numbers: signal.Signals) -> Iterator[None]:
    """Inside the block these signals have the processes save and stop, as SIGTERM does; a second Ctrl-C does not wait.

    Those that are ignored, as SIGHUP under nohup, stay so.
    """
    seen: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        seen.append(number)  # before torch's handler raises in here
        if seen.count(signal.SIGINT) > 1:
            kill_children()
        elif len(seen) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    previous = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number in numbers if previous[number] is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, previous[number])

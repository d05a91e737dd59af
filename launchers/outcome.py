"""What became of a job: the records of its processes and what Slurm says, put together."""

import re
from pathlib import Path
from typing import NamedTuple

from launchers.records import Failure, Records
from launchers.slurm_queue import State
from mgd_ssl.errors import INTERRUPTED

KILLED = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<tasks>[\d,-]+): (?P<how>Killed|.*signal.*|Out Of Memory)")
LAST_LINES = 15  # of a log, shown when there is nothing else to tell
SLURM_ENDS = {
    "CANCELLED": (INTERRUPTED, "was cancelled; the same launch continues from the last checkpoint"),
    "TIMEOUT": (3, "reached its time limit before it had saved itself: raise --signal-delay, then launch it again"),
    "OUT_OF_MEMORY": (1, "ran out of memory: raise --mem, or lower --data.workers"),
    "NODE_FAIL": (3, "lost a node and was not requeued: launch it again, it continues from the last checkpoint"),
    "BOOT_FAIL": (3, "could not start its nodes: launch it again"),
    "DEADLINE": (3, "reached its deadline: launch it again, it continues from the last checkpoint"),
    "PREEMPTED": (INTERRUPTED, "was preempted and not requeued: the same launch continues from the last checkpoint"),
}


class Outcome(NamedTuple):
    """How a job ended."""

    code: int
    told: str


def cause(failure: Failure, num_tasks: int) -> str:
    """Which process failed, where, and with what."""
    where = f"rank {failure.rank} of {num_tasks} on {failure.node}"
    if failure.told.startswith("Traceback"):
        return f"mgd-ssl: {where} failed:\n{failure.told}"
    return f"mgd-ssl: {failure.told}" + (f" ({where})" if num_tasks > 1 else "")


def outcome(records: Records, state: State) -> Outcome:
    """How a job ended that Slurm no longer runs.

    A process that raises takes others with it, which then raise too: told is the one that failed first. One that
    was killed tells nothing itself, but its peers and srun do.
    """
    submission, end, failures = records.submission(), records.end(), records.failures()
    if end is not None and end.code == 0:
        return Outcome(0, "finished")
    killed = killed_ranks(records)
    if failures and not (failures[0].connection and killed):
        return Outcome(failures[0].code, cause(failures[0], submission.num_tasks))
    if state.name == "CANCELLED" and not records.attempts():
        return Outcome(INTERRUPTED, f"mgd-ssl: job {submission.job_id} was cancelled before it started")
    if state.name in SLURM_ENDS:
        code, told = SLURM_ENDS[state.name]
        return Outcome(code, f"mgd-ssl: job {submission.job_id} {told}")
    if killed:
        return Outcome(1, f"mgd-ssl: {killed}: out of memory, or killed from outside? The last checkpoint stays")
    if end is not None and not (end.requeued and state.name == "FAILED"):  # else the next start never got as far
        return Outcome(end.code, f"mgd-ssl: {end.told}")
    log, last = submission.logs[-1], "\n".join(_newest_lines(records)[-LAST_LINES:])
    told = f"mgd-ssl: job {submission.job_id} ended as {state.name} without a word from the command: see {log}"
    if not records.attempts():
        told = (
            f"mgd-ssl: job {submission.job_id} ended as {state.name} before the command started: see {log}, and --setup"
        )
    return Outcome(1, f"{told}, which ends\n{last}" if last else told)


def killed_ranks(records: Records) -> str:
    """`rank 3 on node2 was killed`, as srun told of the first in the newest attempt; empty when it told of none."""
    for line in _newest_lines(records):
        if "Terminating" in line:  # from here on srun kills the others
            return ""
        if match := KILLED.search(line):
            several = not match["tasks"].isdigit()
            verb = "ranks {} on {} were killed" if several else "rank {} on {} was killed"
            return verb.format(match["tasks"], match["node"])
    return ""


def _newest_lines(records: Records) -> list[str]:
    """What the logs got since the newest start."""
    attempts = records.attempts()
    starts = attempts[-1].log_bytes if attempts else []
    lines: list[str] = []
    for i, name in enumerate(records.submission().logs):
        log = Path(name)
        if log.is_file():
            with log.open("rb") as file:
                file.seek(starts[i] if i < len(starts) else 0)
                lines += file.read().decode(errors="replace").splitlines()
    return lines

"""`--wait`: a job's log as it grows, what becomes of the job, and its end."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launchers.outcome import Outcome, outcome
from launchers.records import Records
from launchers.slurm import Job
from launchers.slurm_queue import State, states
from mgd_ssl.errors import UserError
from mgd_ssl.printable import printable_lines

LOOK = 2.0  # seconds between two looks at the queue
CONTROLLER_AWAY = 900.0  # seconds without an answer of Slurm's before we stop asking
BETWEEN = {"NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "TIMEOUT"}  # a job may be on its way back to the queue
RETURN = 20.0  # seconds it has for that
SETTLE = 5.0  # seconds after a job's end for the last lines and records to reach this machine


class Log:
    """New lines of files that grow."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.positions = dict.fromkeys(paths, 0)

    def lines(self) -> str:
        """What has been added since the last call, whole lines only."""
        found = b""
        for path, position in self.positions.items():
            if path.is_file():
                with path.open("rb") as file:
                    file.seek(position)
                    new = file.read()
                whole = new[: new.rfind(b"\n") + 1]
                self.positions[path] += len(whole)
                found += whole
        return found.decode(errors="replace")


def follow(jobs: Sequence[Job]) -> int:
    """Print what jobs log until all have ended.

    A single job's log is printed as it grows; of several, what becomes of them.

    Returns:
        The exit code of the first that did not finish, 0 when all did.

    Raises:
        UserError: when Slurm does not answer for a quarter of an hour.
    """
    log = Log([Path(path) for path in jobs[0].records.submission().logs] if len(jobs) == 1 else [])
    seen: dict[str, str] = {}
    left = {job.job_id: job for job in jobs}
    ends: dict[str, Outcome] = {}
    gone: dict[str, float] = {}  # when a job was first seen in a state that may pass
    while left:
        for job_id, state in patient_states(list(left)).items():
            now = told(left[job_id].records, state)
            since = gone.setdefault(job_id, time.monotonic()) if state.name in BETWEEN else gone.pop(job_id, 0.0)
            if not state.alive and (state.name not in BETWEEN or time.monotonic() - since > RETURN):
                ends[job_id] = settled(left.pop(job_id).records, state)
            elif seen.get(job_id) != now:
                seen[job_id] = now
                print(f"job {job_id}: {now}", flush=True)
        print(printable_lines(log.lines()), end="", flush=True)
        if left:
            time.sleep(LOOK)
    for job in jobs:
        told_of = printable_lines(f"job {job.job_id}: {ends[job.job_id].told}")
        print(told_of, file=sys.stderr if ends[job.job_id].code else sys.stdout)
    return next((ends[job.job_id].code for job in jobs if ends[job.job_id].code), 0)


def patient_states(job_ids: Sequence[str]) -> dict[str, State]:
    """States of jobs, asked for again while the controller is away."""
    asked = time.monotonic()
    told = False
    while True:
        try:
            return states(job_ids)
        except UserError as error:
            if time.monotonic() - asked > CONTROLLER_AWAY:
                raise
            if not told:
                print(f"mgd-ssl: {error} Asking on", file=sys.stderr)
                told = True
            time.sleep(10 * LOOK)


def told(records: Records, state: State) -> str:
    """A state in words: `pending (Priority)`, `running on node[1-2], start 2`."""
    words = state.name.lower().replace("_", " ")
    if state.name == "PENDING" and state.reason:
        words += f" ({state.reason})"
    if state.name == "RUNNING":
        words += f" on {state.nodes}"
    starts = len(records.attempts())
    return words + (f", start {starts}" if starts > 1 and state.alive else "")


def settled(records: Records, state: State) -> Outcome:
    """The outcome, once what the job wrote last can be read here."""
    deadline = time.monotonic() + SETTLE
    while records.end() is None and not records.failures() and time.monotonic() < deadline:
        time.sleep(0.2)
    return outcome(records, state)

"""A launched command as Slurm runs it: what submitit pickles, and every task of the job calls.

Whatever the pickle says, a run continues from its newest checkpoint, so a job that starts again runs the same
command again. Who has it started again:

- the time limit, a preemption with the user signal, `scancel --signal=USR2`: SIGUSR2. The state is saved, and rank 0
  requeues the job.
- the time limit, when Slurm (which looks every half a minute) had not sent SIGUSR2 before: SIGTERM, and the job is
  ending for that reason. Slurm does not requeue it; rank 0 does.
- a preemption without the user signal: SIGTERM while the job is running and has a preemption time. Slurm requeues
  what it has to kill at the end of the grace time; a job that saves and ends before would count as completed, so
  rank 0 requeues it.
- `scontrol requeue`, a failed node: Slurm requeues the job itself and kills it meanwhile. SIGTERM saves what it can.
- `scancel`: SIGTERM, and the job is not running any more: it is saved and stays cancelled.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.helpers import DelayedSubmission

from launchers.process import Ending, Place, enter, execute, tell
from launchers.records import End, Records
from launchers.slurm_queue import attribute
from mgd_ssl.errors import UserError, exit_code

LAST_WORDS = 60.0  # seconds for Slurm to kill what is requeued, or for rank 0 to decide


@dataclass(frozen=True)
class SlurmTask:
    """The callable submitit runs.

    Args:
        command: of `mgd-ssl`, its name and arguments.
        folder: of the records.
        port: rank 0 listens on; None: a free one.
    """

    command: tuple[str, ...]
    folder: str
    port: int | None = None

    def __call__(self) -> None:
        """Run the command as one task of the job; a code other than 0 ends the process."""
        environment = submitit.JobEnvironment()
        records, place = Records(Path(self.folder)), place_in(environment)
        bind_cores()
        if code := exit_code(lambda: enter(place, records, self.port)):  # on a full disk
            raise SystemExit(code)
        paths = environment.paths
        ending = execute(self.command, records, place, [paths.stdout, paths.stderr])
        tell(ending)
        if place.rank == 0 and (ending.code == 0 or ending.signal_number):
            end_job(environment.job_id, ending, records, place)
        elif ending.signal_number:
            await_decision(records, place)
        if ending.code:
            sys.stderr.flush()
            raise SystemExit(ending.code)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit runs after a signal that came before or after the command could take it: the same."""
        return DelayedSubmission(self)


def place_in(environment: submitit.JobEnvironment) -> Place:
    """Where this task stands in the job."""
    return Place(
        environment.global_rank,
        environment.num_tasks,
        environment.local_rank,
        environment.num_tasks // environment.num_nodes,
        os.environ.get("SLURMD_NODENAME", environment.hostname),
        int(os.environ.get("SLURM_RESTART_COUNT", 0)),
    )


def bind_cores() -> None:
    """Tell the command how many cores are this task's where Slurm says so."""
    if "SLURM_CPUS_PER_TASK" in os.environ:
        os.environ["MGD_SSL_CORES"] = os.environ["SLURM_CPUS_PER_TASK"]


def end_job(job_id: str, ending: Ending, records: Records, place: Place) -> None:
    """On rank 0: note the end, and have the job started again if it was not meant to end."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the state is saved, and submitit would requeue it once more
    again = ending.signal_number != 0 and to_be_requeued(job_id, ending.signal_number)
    exit_code(lambda: records.write(End(place.attempt, ending.code, again, ending.told)))  # not needed to go on
    if not again:
        return
    print(f"mgd-ssl: the job is requeued: {job_id}", file=sys.stderr, flush=True)
    answer = subprocess.run(["scontrol", "requeue", job_id], capture_output=True, text=True)
    if answer.returncode == 0:
        time.sleep(LAST_WORDS)  # ends here, killed
    print(f"mgd-ssl: scontrol requeue failed ({answer.stderr.strip()}): launch it again", file=sys.stderr)
    records.write(End(place.attempt, ending.code, requeued=False, told=ending.told))


def to_be_requeued(job_id: str, signal_number: int) -> bool:
    """Whether a job stopped by this signal is to go on: not one that is being cancelled, or requeued by others."""
    try:
        if attribute(job_id, "JobState") != "RUNNING":
            return attribute(job_id, "Reason") == "TimeLimit"
        return signal_number == signal.SIGUSR2 or attribute(job_id, "PreemptTime") not in ("", "None")
    except UserError:  # the controller is away: only the signal that asks for it is enough
        return signal_number == signal.SIGUSR2


def await_decision(records: Records, place: Place) -> None:
    """On the other ranks: do not end, and have srun end the job, before rank 0 has had it requeued."""
    deadline = time.monotonic() + LAST_WORDS
    while time.monotonic() < deadline:
        end = records.end()
        if end is not None and end.number == place.attempt and not end.requeued:
            return
        time.sleep(0.2)

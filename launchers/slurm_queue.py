"""What Slurm says about jobs: squeue first, which every cluster has, then sacct where accounting is kept."""

import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from mgd_ssl.errors import UserError

PATIENCE = 30  # seconds for an answer
ALIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "REQUEUED", "REQUEUE_FED",
    "REQUEUE_HOLD", "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT",
}  # fmt: skip


class State(NamedTuple):
    """Of one job."""

    name: str  # RUNNING, PENDING, ..., UNKNOWN when Slurm has forgotten the job
    reason: str = ""  # why it is pending
    nodes: str = ""

    @property
    def alive(self) -> bool:
        """Whether it runs or will run."""
        return self.name in ALIVE


UNKNOWN = State("UNKNOWN")


def states(job_ids: Sequence[str]) -> dict[str, State]:
    """State of each job; of those Slurm has forgotten, UNKNOWN.

    A job that squeue lists is alive as long as squeue says so, whatever sacct has noted of a node that failed or of
    a preemption.

    Args:
        job_ids: `33`, or `33_0` for an element of an array.

    Raises:
        UserError: when Slurm does not answer.
    """
    if not job_ids:
        return {}
    numbers = ",".join(dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids))
    found = _rows(["squeue", "--noheader", "--array", "--states=all", f"--jobs={numbers}", "--format=%i|%T|%r|%N"])
    if forgotten := [job_id for job_id in job_ids if job_id not in found]:
        found |= _accounted(forgotten)
    return {job_id: found.get(job_id, UNKNOWN) for job_id in job_ids}


def _accounted(job_ids: Sequence[str]) -> dict[str, State]:
    command = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State,Reason,NodeList"]
    try:
        return _rows([*command, f"--jobs={','.join(job_ids)}"])
    except UserError:  # no accounting, or its daemon is away: the records have to do
        return {}


def _rows(command: Sequence[str]) -> dict[str, State]:
    rows = [line.split("|") for line in ask(command).splitlines() if line.count("|") == 3]
    return {
        job_id: State(
            name.split()[0].rstrip("+"), "" if reason == "None" else reason, nodes.replace("None assigned", "")
        )
        for job_id, name, reason, nodes in rows
        if name
    }


def ask(command: Sequence[str]) -> str:
    """What a Slurm command prints; nothing for a job it does not know.

    Raises:
        UserError: when the command is missing, fails or does not answer.
    """
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is not on the PATH: run this where Slurm's commands are")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} did not answer within {PATIENCE} s: try again") from error
    if answer.returncode and "Invalid job id" not in answer.stderr:
        said = answer.stderr.strip().splitlines() or [f"code {answer.returncode}"]
        raise UserError(f"{command[0]} failed ({said[-1].removeprefix(f'{command[0]}: ')}): is this cluster up?")
    return answer.stdout


def attribute(job_id: str, name: str) -> str:
    """One attribute of a job as `scontrol show job` tells it, empty when there is none.

    Raises:
        UserError: when Slurm does not answer.
    """
    for word in ask(["scontrol", "--oneliner", "show", "job", job_id]).split():
        key, _, value = word.partition("=")
        if key == name:
            return value
    return ""

"""What may happen to a job of Slurm, as tests make it happen."""

from pathlib import Path

from tests.launchers.conftest import Job, slurm
from tests.runs import wait_for

# what is done to a job


def user_signal(job: Job) -> None:
    slurm("scancel", "--signal=USR2", job.job_id)


def user_signal_to_all(job: Job) -> None:
    slurm("scancel", "--full", "--signal=USR2", job.job_id)


def requeue(job: Job) -> None:
    slurm("scontrol", "requeue", job.job_id)


def time_limit(job: Job) -> None:
    slurm("scontrol", "update", f"JobId={job.job_id}", "EndTime=now+8seconds")
    started_again(job)
    slurm("scontrol", "update", f"JobId={job.job_id}", "TimeLimit=10")


def preempt(job: Job) -> None:
    """Another job takes the nodes, until this one has given them up."""
    starts = job.starts
    other = slurm(
        "sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 600"
    )
    wait_for(lambda: state(other) == "RUNNING")
    slurm("scancel", other)
    started_again(job, starts)


def node_down(job: Job) -> None:
    slurm("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    wait_for(lambda: state(job.job_id) == "PENDING", job.process)
    slurm("scontrol", "update", "NodeName=node2", "State=RESUME", check=False)  # it may be back already


def started_again(job: Job, starts: int | None = None) -> None:
    before = job.starts if starts is None else starts
    wait_for(lambda: job.starts > before, job.process)


def state(job_id: str) -> str:
    return slurm("squeue", "--noheader", "--states=all", "--jobs", job_id, "--format=%T")


def open_files(pid: int) -> list[Path]:
    return [file for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()]

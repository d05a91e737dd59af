"""`mgd-ssl launch slurm`: a command as a Slurm job, through submitit."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError
from submitit.helpers import clean_env
from submitit.slurm.slurm import _make_sbatch_string

from launchers.config import SlurmConfig, minutes
from launchers.process_slurm import SlurmTask
from launchers.records import Records, Submission
from launchers.slurm_queue import states
from mgd_ssl.errors import UserError
from mgd_ssl.files import writing
from mgd_ssl.printable import is_printable
from mgd_ssl.settings import brief

# of a launcher around this one: torch would take them for its own
LEAKED = "MASTER_ADDR MASTER_PORT RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MGD_SSL_CORES SUBMITIT_PREEMPT_SIGNAL"
TIMEOUTS = 10**9  # that submitit allows: each goes on where the last one ended


class Job(NamedTuple):
    """A command that has been submitted."""

    job_id: str
    run: Path
    records: Records

    @property
    def number(self) -> str:
        """Slurm's number of the job, or of the whole array."""
        return self.job_id.partition("_")[0]

    @property
    def log(self) -> str:
        """File its messages go to."""
        return self.records.submission().logs[1]


def parameters(config: SlurmConfig, name: str, dependency: str | None = None) -> dict[str, Any]:
    """submitit's parameters for a job."""
    if not is_printable(name):
        raise UserError(f"the job's name would be {brief(name)}: give it another by --name")
    named = {
        "job_name": config.name or name,
        "time": minutes(config.time),
        "nodes": config.nodes,
        "ntasks_per_node": config.processes_per_node,
        "gpus_per_node": config.gpus_per_node,
        "cpus_per_task": config.cpus_per_task,
        "mem": config.mem,
        "partition": config.partition,
        "qos": config.qos,
        "account": config.account,
        "constraint": config.constraint,
        "exclude": config.exclude,
        "nodelist": config.nodelist,
        "gres": config.gres,
        "exclusive": config.exclusive or None,
        "comment": config.comment,
        "mail_user": config.mail_user,
        "mail_type": config.mail_type,
        "dependency": dependency,
    }
    others = {"requeue": True, "signal": f"USR2@{config.signal_delay}", "reservation": config.reservation}
    if dependency is not None:
        others["kill-on-invalid-dep"] = "yes"
    return {
        **{key: value for key, value in named.items() if value is not None},
        "setup": setup(config),
        "srun_args": ["--kill-on-bad-exit=1"],
        "array_parallelism": config.array_parallelism,
        "additional_parameters": {key: value for key, value in others.items() if value is not None},
    }


def setup(config: SlurmConfig) -> list[str]:
    """Lines of the batch script before srun."""
    lines = [
        "trap : USR2  # a signal to the whole job must not end this shell before srun does",
        f"unset {LEAKED}",
        "export SLURM_EXPORT_ENV=ALL",
    ]
    check_setup(config.setup)
    if config.cpus_per_task is not None:
        lines.append("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun takes it from nowhere else")
    lines += [f"export {name}={shlex.quote(value)}" for name, _, value in (pair.partition("=") for pair in config.env)]
    return [*lines, "set -e", *config.setup, "set +e"] if config.setup else lines


def check_setup(lines: Sequence[str]) -> None:
    """Raise UserError when bash would read on behind these lines: for an open quote, a backslash or a here-document.

    The rest of the script would become part of them.
    """
    text = "\n".join(lines)
    if (len(text) - len(text.rstrip("\\"))) % 2:
        raise UserError(f"--setup has {brief(lines[-1])}: take the backslash at its end out")
    if not lines or shutil.which("bash") is None:
        return
    answer = subprocess.run(["bash", "-n"], input=f"{text}\n", capture_output=True, text=True, env={"LC_ALL": "C"})
    if answer.returncode or answer.stderr:
        said = answer.stderr.strip().splitlines() or ["no word"]
        raise UserError(f"--setup {brief(lines[-1])} is no whole line for bash ({said[0]}): close what is open in it")


def check_log_folder(folder: Path) -> None:
    """Raise UserError when Slurm would put something else in the place of a part of this path, or bash would run it."""
    if not is_printable(folder):
        raise UserError(f"the folder {brief(folder)} has control characters in its name: choose another --out")
    if "%" in str(folder) or "\\" in str(folder):
        raise UserError(
            f"the folder {brief(folder)} has % or \\ in its name, which Slurm replaces: choose another --out"
        )


def batch_script(config: SlurmConfig, name: str, folder: Path, count: int = 1, dependency: str | None = None) -> str:
    """The text sbatch gets: what submitit makes of the parameters."""
    check_log_folder(folder)
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(
        _make_sbatch_string(
            command, folder, map_count=count if count > 1 else None, **parameters(config, name, dependency)
        )
    )


def home_of(runs: Sequence[Path]) -> Path:
    """Where the logs of a job lie, in jobs/: its run, or one folder beside all the runs of an array."""
    folders = [run.absolute() for run in runs]
    return Path(os.path.commonpath(folders)) / ".array" if len(folders) > 1 else folders[0]


def submit(
    config: SlurmConfig,
    name: str,
    commands: Sequence[Sequence[str]],
    runs: Sequence[Path],
    dependency: str | None = None,
) -> list[Job]:
    """Submit a command, or several as one array.

    Args:
        config: how.
        name: of the job.
        commands: name and arguments of each.
        runs: folder each writes to.
        dependency: Slurm's, `afterok:33`.

    Raises:
        UserError: with sbatch's own words when it refuses; nothing is left behind.
    """
    check_log_folder(home_of(runs))
    suffix = f"_{commands[0][0]}"
    all_records = [Records.new(run.absolute(), suffix) for run in runs]
    home = Records.new(home_of(runs), suffix) if len(runs) > 1 else all_records[0]
    tasks = [
        SlurmTask(tuple(command), str(records.folder), config.port)
        for command, records in zip(commands, all_records, strict=True)
    ]
    try:
        with clean_env(), writing(home.folder):
            executor = SlurmExecutor(home.folder, max_num_timeout=TIMEOUTS)
            executor.update_parameters(**parameters(config, name, dependency))
            with executor.batch():
                submitted = [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        for records in {home.folder: home, **{r.folder: r for r in all_records}}.values():
            shutil.rmtree(records.folder)
        raise UserError(refusal(str(error))) from error
    jobs = []
    for job, command, run, records in zip(submitted, commands, runs, all_records, strict=True):
        logs = [str(job.paths.stdout), str(job.paths.stderr)]
        records.write(Submission("slurm", list(command), job.job_id, config.nodes * config.processes_per_node, logs))
        jobs.append(Job(job.job_id, run, records))
    return jobs


def check_submission(script: str) -> None:
    """Ask sbatch whether such a job could ever run: too many nodes would be taken, and wait for ever.

    Raises:
        UserError: with sbatch's words when it could not.
    """
    try:
        with clean_env():
            answer = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        raise UserError("sbatch is not on the PATH: run this where Slurm's commands are") from error
    except subprocess.TimeoutExpired as error:
        raise UserError("sbatch did not answer within 60 s: try again") from error
    if answer.returncode:
        raise UserError(refusal(answer.stderr))


REMEDIES = {
    "contact": "is this cluster up? `scontrol ping` tells",
    "configuration source": "is this cluster up? `scontrol ping` tells",
    "account": "`sacctmgr show associations user=$USER` lists your accounts",
    "partition": "`sinfo` lists the partitions",
    "qos": "`sacctmgr show qos` lists them",
    "feature": "`sinfo -o '%N %f'` lists the nodes' features",
    "node": "`sinfo -o '%P %D %c %m %G'` lists what each partition's nodes have",
    "time": "`sinfo -o '%P %l'` lists the limits",
}


def refusal(words: str) -> str:
    """sbatch's refusal as one sentence, with where to look."""
    lines = [line.partition(":")[2].strip() or line for line in words.strip().splitlines() if line.strip()]
    said = lines[-1] if lines else "nothing"
    remedy = next((remedy for word, remedy in REMEDIES.items() if word in words.lower()), "change the options")
    return f"Slurm refuses this job ({said}): {remedy}"


def check_free(run: Path) -> None:
    """Raise UserError when a job of this run is waiting or running."""
    ids = [s.job_id for s in (records.submission() for records in Records.of_run(run)) if s.job_id]
    for job_id, state in states(ids[-5:]).items():
        if state.alive:
            raise UserError(f"job {job_id} of {run} is {state.name.lower()}: wait for it, or `scancel {job_id}` first")

"""Settings of the launchers."""

import re
from pathlib import Path
from typing import Annotated, Self

import tyro
from pydantic import Field, field_validator, model_validator

from mgd_ssl.config import MAX_WORKERS
from mgd_ssl.printable import is_printable
from mgd_ssl.settings import Settings, brief

Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


# bash sets these itself: an export of the job's script would fail, or not reach the processes
READ_ONLY = ("BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID", "SUBMITIT_EXECUTOR", "_")


class Words(Settings):
    """Settings that become lines of a script and of records: one line each."""

    @model_validator(mode="after")
    def _one_line(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            for word in value if isinstance(value, tuple) else [value]:
                if isinstance(word, str | Path) and not is_printable(word):
                    raise ValueError(f"{name} is {brief(word)}: take line breaks and control characters out")
        return self


class LocalConfig(Words):
    """Run a command in several processes of this host: mgd-ssl launch local --procs 4 -- pretrain ..."""

    out: Path | None = None
    """The command's --out, which may stand on either side of the --."""
    procs: int = Field(1, ge=1, le=MAX_WORKERS)
    """Processes; one a GPU where there are GPUs."""
    restarts: int = Field(0, ge=0, le=10**6)
    """Times all processes are started again, from the newest checkpoint, after one has failed."""


class SlurmConfig(Words):
    """Run a command as a Slurm job: mgd-ssl launch slurm --nodes 2 --gpus-per-node 8 --out RUN -- pretrain ..."""

    out: Path | None = None
    """The command's --out, which may stand on either side of the --; logs go to jobs/ in it. On a file system that
    all nodes share. With --array, the folder of all runs."""
    nodes: int = Field(1, ge=1, le=10**5)
    """Nodes."""
    gpus_per_node: int | None = Field(None, ge=1, le=MAX_WORKERS)
    """GPUs of a node; None: none are asked for, or by --gres."""
    tasks_per_node: int | None = Field(None, ge=1, le=MAX_WORKERS)
    """Processes on a node; None: one a GPU, 1 without."""
    cpus_per_task: int | None = Field(None, ge=1, le=2**16)
    """Cores of a process, for itself and its data workers; None: the cluster's default."""
    mem: str | None = None
    """Memory of a node, such as 200G; 0 for all of it."""
    time: str = "24h"
    """Time limit: 72h, 90m, 3d, or as Slurm writes it (1-12:00:00, 90). A run that reaches it is saved, requeued and
    continued."""
    partition: str | None = None
    """Partition."""
    qos: str | None = None
    """Quality of service."""
    account: str | None = None
    """Account."""
    constraint: str | None = None
    """Features the nodes must have."""
    exclude: str | None = None
    """Nodes not to use."""
    nodelist: str | None = None
    """Nodes to use."""
    gres: str | None = None
    """Generic resources of a node, such as gpu:h100:8; --tasks-per-node says how many processes use them."""
    exclusive: bool = False
    """Share the nodes with no other job."""
    reservation: str | None = None
    """Reservation."""
    comment: str | None = None
    """Comment."""
    mail_user: str | None = None
    """Address for mails."""
    mail_type: str | None = None
    """When to mail, such as END,FAIL."""
    signal_delay: int = Field(120, ge=1, le=65535)
    """Seconds before the time limit at which the run is told to save itself; longer than a step and a save take."""
    setup: Repeated = ()
    """A shell line to run on the first node before the processes start (module load ...); may be given several
    times. One that fails ends the job."""
    env: Repeated = ()
    """A variable NAME=VALUE for the processes; may be given several times."""
    port: int | None = Field(None, ge=1024, le=65535)
    """Port rank 0 listens on; None: one that is free there."""
    name: str | None = None
    """Name of the job; None: the command and the name of its folder."""
    array: Path | None = None
    """TOML file of lists: every combination of their values is a run, each in a folder of its own below --out."""
    array_parallelism: int = Field(256, ge=1, le=10**6)
    """Elements of the array that run at the same time, at most."""
    then: Repeated = ()
    """A command to submit for when this one has finished: linear or knn, or 'linear --data DIR --protocol moco'; may
    be given several times."""
    wait: bool = False
    """Follow the job's log until its end, and exit with its code."""
    dry_run: bool = False
    """Print what would be submitted, and do nothing."""

    @field_validator("time")
    @classmethod
    def _time(cls, value: str) -> str:
        minutes(value)
        return value

    @field_validator("env")
    @classmethod
    def _env(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            name, equals, _ = value.partition("=")
            if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{brief(value)} is no NAME=VALUE, so write it like that")
            if name in READ_ONLY:
                raise ValueError(f"{name} is set by the shell itself, so leave it out")
        return values

    @property
    def processes_per_node(self) -> int:
        """Processes on a node."""
        return self.tasks_per_node or self.gpus_per_node or 1


UNITS = {"m": 1, "h": 60, "d": 24 * 60}
SLURM_TIME = re.compile(r"(?:(?P<d>[0-9]{1,6})-)?(?P<a>[0-9]{1,9})(?::(?P<b>[0-9]{1,9}))?(?::(?P<c>[0-9]{1,9}))?")


def minutes(time: str) -> int:
    """A time limit in minutes, rounded up: `72h`, `90m`, `3d`, `90`, `1:30:00`, `1-12`, `1-12:00:00`.

    Raises:
        ValueError: for anything else, and for none at all.
    """
    if match := re.fullmatch(r"([0-9]{1,9})([mhd])", time):
        total = 60 * int(match[1]) * UNITS[match[2]]
    elif match := SLURM_TIME.fullmatch(time):
        parts = [int(part) for part in (match["a"], match["b"], match["c"]) if part is not None]
        with_hours = match["d"] is not None or len(parts) == 3  # else minutes:seconds
        units = (3600, 60, 1) if with_hours else (60, 1, 0)
        total = 86400 * int(match["d"] or 0) + sum(n * unit for n, unit in zip(parts, units, strict=False))
    else:
        total = 0
    if total == 0:
        raise ValueError("write 72h, 90m, 3d or 1-12:00:00")
    return -(-total // 60)

"""A real Slurm of two nodes on this machine, and jobs on it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from launchers.records import Records
from tests.runs import DEADLINE, command, ended, flags, processes, tiny, wait_for

SCRIPTS = Path(__file__).parents[1] / "slurm"


class Cluster:
    """Starts the cluster with the options a test wants; jobs of earlier tests are gone then."""

    def __init__(self) -> None:
        self.options: tuple[str, ...] | None = None

    def start(self, *options: str) -> None:
        if options != self.options:
            answer = subprocess.run([SCRIPTS / "start-slurm.sh", *options], capture_output=True, text=True, timeout=300)
            assert answer.returncode == 0, answer.stdout + answer.stderr
            self.options = options
        slurm("scontrol", "update", "NodeName=node[1-2]", "State=RESUME", check=False)

    def clear(self) -> None:
        slurm("scancel", "--user=root", check=False)
        slurm("scancel", "--user=root", "--signal=KILL", check=False)
        wait_for(lambda: not slurm("squeue", "--noheader"))

    def stop(self) -> None:
        subprocess.run([SCRIPTS / "stop-slurm.sh"], capture_output=True, timeout=300)


def slurm(*words: str, check: bool = True) -> str:
    """What a Slurm command prints."""
    answer = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0 or not check, answer.stderr
    return answer.stdout.strip()


def unavailable() -> str:
    """Why no Slurm can be started here, empty where one can."""
    if sys.platform != "linux" or os.getuid() != 0:
        return "a test cluster needs Linux and root"
    if shutil.which("slurmctld") is None and shutil.which("apt-get") is None:
        return "a test cluster needs Debian's slurmctld"
    config = Path("/etc/slurm/slurm.conf")
    if config.exists() and "slurm-test cluster" not in config.read_text():
        return "this machine belongs to a Slurm cluster of its own"
    return ""


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    if why := unavailable():
        pytest.skip(f"no Slurm: {why}")
    cluster = Cluster()
    cluster.start("--accounting")
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """With accounting, empty before and after a test."""
    running_cluster.start("--accounting")
    yield running_cluster
    running_cluster.clear()


class Job:
    """`mgd-ssl launch slurm ... --wait` in a process of its own."""

    def __init__(self, process: ForkServerProcess, out: Path, run: Path, hold: Path) -> None:
        self.process, self.out, self.run, self.hold = process, out, run, hold

    @property
    def told(self) -> str:
        return self.out.read_text() if self.out.exists() else ""

    @property
    def job_id(self) -> str:
        wait_for(lambda: re.search(r"^job \d+", self.told, re.MULTILINE) is not None, self.process)
        found = re.search(r"^job (\d+)", self.told, re.MULTILINE)
        assert found
        return found[1]

    @property
    def starts(self) -> int:
        return len(Records.of_run(self.run)[-1].attempts())

    def held(self, step: int | str, ranks: int = 2) -> list[int]:
        """Pids of all ranks, once they wait at a step."""
        files = [self.hold / f"held_{step}_{rank}" for rank in range(ranks)]
        wait_for(lambda: all(file.exists() for file in files), self.process)
        return [int(file.read_text()) for file in files]

    def go(self) -> None:
        (self.hold / "go").touch()

    def ended(self) -> int:
        self.process.join(2 * DEADLINE)
        return ended(self.process)


Launch = Callable[..., Job]


@pytest.fixture
def launch(cluster: Cluster, tmp_path: Path) -> Iterator[Launch]:
    """Launch `pretrain` with settings as `tests.runs.tiny` makes them, and follow it."""
    jobs: list[Job] = []

    def start(settings: dict[str, Any], *options: str, hold: str = "", fail: str = "", nodes: int = 2) -> Job:
        folder = tmp_path / f"hold{len(jobs)}"
        folder.mkdir()
        env = [f"PYTHONPATH={SCRIPTS / 'hold'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"]
        env += [f"HOLD={folder}:{hold}"] if hold else []
        env += [f"FAIL={fail}"] if fail else []
        words = ["launch", "slurm", "--nodes", str(nodes), "--time", "10m", "--signal-delay", "5", "--wait"]
        words += [word for pair in env for word in ("--env", pair)]
        out = tmp_path / f"launch{len(jobs)}.txt"
        args = [*words, *options, "--", "pretrain", *flags(settings)]
        process = processes.Process(target=command, args=(args, out, {}, None), daemon=False)
        process.start()
        jobs.append(Job(process, out, Path(settings["out"]), folder))
        return jobs[-1]

    yield start
    for job in jobs:
        job.process.kill()
        if job.told:
            print(job.told)


@pytest.fixture(scope="module")
def settings(image_folder: Path, teacher_file: Path) -> Callable[..., dict[str, Any]]:
    """Of a run with a teacher."""

    def make(out: Path, **changes: Any) -> dict[str, Any]:
        return tiny(image_folder, out, teacher=teacher_file, **changes)

    return make

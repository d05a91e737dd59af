"""Storms of SIGKILL over tiny runs: whoever is hit, nothing is left behind, and the run goes on to the same end."""

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from mgd_ssl import pretrain
from mgd_ssl.cli import main
from tests.runs import assert_same_end, children, command, ended, flags, gone, processes, start, tiny, wait_for

LONGEST = 4.0  # seconds a tiny run of two processes takes at most, so a kill comes before, within or after it


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    return [pid, *(one for child in children(pid) for one in family(child))]


def strike(process: ForkServerProcess, draw: random.Random, choose: Callable[[list[int]], list[int]]) -> None:
    """Kill one of the processes `choose` picks from a family after a random while; return when all of it is gone."""
    assert process.pid is not None
    deadline = time.monotonic() + draw.uniform(0, LONGEST)
    wait_for(lambda: time.monotonic() > deadline or not process.is_alive())
    known = family(process.pid)
    targets = [pid for pid in choose(known) if not gone([pid])]
    if targets:
        target = draw.choice(targets)
        known = sorted({*known, *family(process.pid)})
        os.kill(target, signal.SIGKILL)
    ended(process)
    wait_for(lambda: gone(known))


def is_rank(pid: int) -> bool:
    try:
        return b"launchers.process_local" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize("hit", ["the run", "a data worker"])
def test_kills_of_one_process(hit: str, image_folder: Path, tmp_path: Path, rounds: int) -> None:
    changes = {"data": {"workers": 2}, "checkpoint": {"every_steps": 1}}
    draw, settings = random.Random(hit), tiny(image_folder, tmp_path / "run", **changes)
    (tmp_path / "stderr").touch()  # a kill may come before the run opens it
    for _ in range(3 * rounds):
        process = start(settings, tmp_path / "stderr")
        strike(process, draw, lambda pids: pids[:1] if hit == "the run" else pids[1:])
        assert not list((tmp_path / "run").glob("result.json")) or process.exitcode == 0
        if process.exitcode == 0:
            break
    pretrain(**settings)
    pretrain(**tiny(image_folder, tmp_path / "reference", **changes))
    assert_same_end(tmp_path / "run", tmp_path / "reference")
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert not list((tmp_path / "run").rglob(".*.tmp"))


@pytest.mark.parametrize("hit", ["launch local", "a rank"])
def test_kills_of_two_processes(hit: str, image_folder: Path, tmp_path: Path, rounds: int) -> None:
    changes = {"checkpoint": {"every_steps": 1}}
    draw, settings = random.Random(hit), tiny(image_folder, tmp_path / "run", **changes)
    words = ["launch", "local", "--procs", "2", "--", "pretrain"]
    for _ in range(2 * rounds):
        args = [*words, *flags(settings)]
        process = processes.Process(target=command, args=(args, tmp_path / "said.txt", {}, None), daemon=False)
        process.start()
        strike(process, draw, lambda pids: pids[:1] if hit == "launch local" else [p for p in pids if is_rank(p)])
        if process.exitcode == 0:
            break
    assert main([*words, *flags(settings)]) == 0
    assert main([*words, *flags(tiny(image_folder, tmp_path / "reference", **changes))]) == 0
    assert_same_end(tmp_path / "run", tmp_path / "reference")


def few_files(spare: int) -> None:
    """Have this process open only so many files more."""
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, used + spare))


def test_too_few_files_end_in_a_sentence(image_folder: Path, tmp_path: Path, rounds: int) -> None:
    draw, codes = random.Random("files"), list[int]()
    knn = {"train": image_folder / "train", "val": image_folder / "val", "every_epochs": 1, "k": 3}
    for i in range(4 * rounds):
        stderr, spare = tmp_path / f"stderr{i}", draw.choice([6, 10, 20, 30, 40, 50, 60])
        process = start(tiny(image_folder, tmp_path / str(i), knn=knn, data={"workers": 2}), stderr, few_files, spare)
        codes.append(ended(process))
        told = stderr.read_text()
        assert codes[-1] in (0, 2, 3), (spare, told)
        assert "Traceback" not in told, (spare, told)
        assert codes[-1] == 0 or "oo many open files" in told or "too many files are open" in told, (spare, told)
    assert any(codes)

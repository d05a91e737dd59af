"""Several processes of this host through torch's elastic launcher."""

import os
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from launchers.launch import main
from launchers.records import Records
from launchers.runs import read_rows
from tests.launchers.conftest import SCRIPTS
from tests.runs import assert_same_end, children, command, ended, flags, gone, processes, steps_saved, tiny, wait_for


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(["local", "--procs", "2", "--", "pretrain", *flags(tiny(image_folder, out))]) == 0
    return out


Start = Callable[..., ForkServerProcess]


@pytest.fixture
def start(image_folder: Path, tmp_path: Path) -> Start:
    """`mgd-ssl launch local` in a process of its own; what it says goes to said.txt."""

    def started(*options: str, hold: str = "", fail: str = "", **changes: Any) -> ForkServerProcess:
        env = {"PYTHONPATH": f"{SCRIPTS / 'hold'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        env |= {"HOLD": f"{tmp_path}:{hold}"} if hold else {}
        env |= {"FAIL": fail} if fail else {}
        words = ["launch", "local", "--procs", "2", *options, "--", "pretrain"]
        args = [*words, *flags(tiny(image_folder, tmp_path / "run", **changes))]
        process = processes.Process(target=command, args=(args, tmp_path / "said.txt", env, None), daemon=False)
        process.start()
        return process

    return started


def held(folder: Path, step: int, process: ForkServerProcess) -> list[int]:
    files = [folder / f"held_{step}_{rank}" for rank in range(2)]
    wait_for(lambda: all(file.exists() for file in files), process)
    return [int(file.read_text()) for file in files]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_saves_and_the_same_command_continues(
    number: signal.Signals, start: Start, uninterrupted: Path, tmp_path: Path
) -> None:
    process = start(hold="4")
    held(tmp_path, 4, process)
    os.kill(process.pid or 0, number)
    assert ended(process) == 75
    assert steps_saved(tmp_path / "run")[-1] in (4, 5)
    assert ended(start()) == 0
    assert_same_end(tmp_path / "run", uninterrupted)
    [first, second] = Records.of_run(tmp_path / "run")
    assert [records.end().code for records in (first, second) if (records.end())] == [75, 0]  # type: ignore[union-attr]


def test_the_rank_that_failed_is_told_with_its_traceback(start: Start, tmp_path: Path) -> None:
    assert ended(start(fail="5:1")) == 1
    said = (tmp_path / "said.txt").read_text()
    assert "rank 1 of 2 on" in said and "ArithmeticError: rank 1 was told to fail" in said
    assert said.count("Traceback (most recent call last)") == 1  # not those of the ranks that lost their peer


def test_a_killed_rank_is_named(start: Start, tmp_path: Path) -> None:
    process = start(hold="4")
    os.kill(held(tmp_path, 4, process)[1], signal.SIGKILL)
    assert ended(process) == 1
    said = (tmp_path / "said.txt").read_text()
    assert "rank 1 was killed by SIGKILL: the same command continues" in said
    assert "Traceback" not in said


def test_nothing_outlives_a_killed_launcher(start: Start, uninterrupted: Path, tmp_path: Path) -> None:
    process = start(hold="4", data={"workers": 1})
    ranks = held(tmp_path, 4, process)
    workers = [pid for rank in ranks for pid in children(rank)]
    assert len(workers) == 2
    process.kill()
    assert ended(process) == -signal.SIGKILL
    wait_for(lambda: gone([*ranks, *workers]))
    assert ended(start()) == 0
    assert_same_end(tmp_path / "run", uninterrupted)


def test_restarts_continue_from_the_newest_checkpoint(start: Start, uninterrupted: Path, tmp_path: Path) -> None:
    process = start("--restarts", "1", hold="5")
    os.kill(held(tmp_path, 5, process)[1], signal.SIGKILL)
    assert ended(process) == 0
    assert_same_end(tmp_path / "run", uninterrupted)
    assert len(Records.of_run(tmp_path / "run")[-1].attempts()) == 2


def test_a_wrong_setting_is_one_sentence(start: Start, tmp_path: Path) -> None:
    assert ended(start(moco={"queue_size": 65})) == 2
    said = (tmp_path / "said.txt").read_text()
    assert "mgd-ssl: moco.queue_size 65 is not a multiple of optim.batch_size 16" in said
    assert "Traceback" not in said and said.count("queue_size 65") == 1


def test_a_classification_is_launched_stopped_and_continued(image_folder: Path, tmp_path: Path) -> None:
    def launched(out: Path, hold: str = "") -> ForkServerProcess:
        env = {"PYTHONPATH": f"{SCRIPTS / 'hold'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        env |= {"HOLD": f"{tmp_path}:{hold}"} if hold else {}
        data = {"train": image_folder / "train", "val": image_folder / "val", "image_size": 32, "workers": 0}
        settings = {
            "out": out, "student": "thin_resnet10", "data": data,
            "optim": {"epochs": 2, "batch_size": 16, "lr": 0.01, "mixup": 0.3, "ema": 0.6},
            "runtime": {"log_every": 1, "threads": 1, "device": "cpu"},
        }  # fmt: skip
        args = ["launch", "local", "--procs", "2", "--", "classify", *flags(settings)]
        process = processes.Process(target=command, args=(args, tmp_path / "said.txt", env, None), daemon=False)
        process.start()
        return process

    whole = launched(tmp_path / "whole")
    assert ended(whole) == 0
    process = launched(tmp_path / "run", hold="4")
    held(tmp_path, 4, process)
    os.kill(process.pid or 0, signal.SIGTERM)
    assert ended(process) == 75
    assert ended(launched(tmp_path / "run")) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole", steps_saved(tmp_path / "whole")[-1])
    assert runs_table(tmp_path) == {"run": "finished", "whole": "finished"}


def runs_table(folder: Path) -> dict[str, str]:
    """State of every run as `mgd-ssl runs` reads it."""
    found = read_rows([folder / "run", folder / "whole"])
    assert all(row.value is not None and row.loss is not None for row in found)
    return {Path(row.run).name: row.state for row in found}

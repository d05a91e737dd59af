"""Signals and kills at any moment: the run saves or goes back, and ends like one that was not interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mgd_ssl import Interrupted, pretrain
from tests.runs import (
    DEADLINE,
    Reference,
    assert_same_end,
    checkpoint,
    die_in_checkpoint,
    ended,
    flags,
    hold_at,
    rows,
    start,
    steps_saved,
    tiny,
    wait_for,
)
from tests.terminal import ENV, Terminal

# stopped in a process of its own


@pytest.mark.parametrize(
    ("number", "to_group"),
    [
        pytest.param(signal.SIGTERM, False, id="SIGTERM"),
        pytest.param(signal.SIGINT, False, id="SIGINT"),
        pytest.param(signal.SIGUSR2, False, id="SIGUSR2"),
        pytest.param(signal.SIGTERM, True, id="SIGTERM to the data workers too"),
        pytest.param(signal.SIGHUP, True, id="SIGHUP to the data workers too"),
    ],
)
def test_signal_saves_the_step_and_exits_with_75(
    number: signal.Signals,
    to_group: bool,
    image_folder: Path,
    tmp_path: Path,
    teacher_file: Path,
    uninterrupted: Reference,
) -> None:
    settings = tiny(image_folder, tmp_path / "run", teacher=teacher_file, data={"workers": 2 if to_group else 0})
    flag, stderr = tmp_path / "flag", tmp_path / "stderr"
    process = start(settings, stderr, hold_at, 5, flag)
    wait_for(flag.exists, process)
    assert process.pid is not None
    if to_group:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    flag.unlink()
    assert ended(process) == 75
    assert f"stopped by {number.name} after step 5: the same command continues from there" in stderr.read_text()
    assert steps_saved(tmp_path / "run") == [3, 5]
    assert checkpoint(tmp_path / "run", 5)["step"] == 5
    pretrain(**settings)
    assert_same_end(tmp_path / "run", uninterrupted(teacher=teacher_file))


@pytest.mark.parametrize(("pause", "code"), [(0.1, 75), (1.5, -signal.SIGINT)], ids=["forwarded", "by the user"])
def test_second_interrupt_ends_at_once_only_when_the_user_sent_it(
    pause: float, code: int, image_folder: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    process = start(tiny(image_folder, tmp_path / "run"), tmp_path / "stderr", hold_at, 5, flag)
    wait_for(flag.exists, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)  # of the terminal
    time.sleep(pause)
    os.kill(process.pid, signal.SIGINT)  # torchrun passes it on to processes that have it already
    time.sleep(0.1)
    flag.unlink()
    assert ended(process) == code
    assert steps_saved(tmp_path / "run")[-1] == (5 if code == 75 else 3)


def ignore_and_hold_at(step: int, flag: Path) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    hold_at(step, flag)


def test_signals_ignored_at_the_start_stay_so(image_folder: Path, tmp_path: Path, uninterrupted: Reference) -> None:
    flag = tmp_path / "flag"  # as under nohup, in the background
    settings = tiny(image_folder, tmp_path / "run")
    process = start(settings, tmp_path / "stderr", ignore_and_hold_at, 5, flag)
    wait_for(flag.exists, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGHUP)
    flag.unlink()
    assert ended(process) == 0
    assert "SIGINT and SIGHUP ignored since the start" in (tmp_path / "run" / "log.txt").read_text()
    assert_same_end(tmp_path / "run", uninterrupted())


def test_a_run_whose_terminal_is_closed_saves_and_stops(
    image_folder: Path, tmp_path: Path, uninterrupted: Reference
) -> None:
    flag, terminal = tmp_path / "flag", Terminal()
    settings = tiny(image_folder, tmp_path / "run", data={"workers": 1})
    process = start(settings, terminal.path, hold_at, 5, flag, env=ENV)
    wait_for(flag.exists, process)
    assert process.pid is not None
    terminal.close()
    os.killpg(process.pid, signal.SIGHUP)  # as the kernel does to all processes in it
    flag.unlink()
    assert ended(process) == 75
    assert steps_saved(tmp_path / "run") == [3, 5]
    pretrain(**settings)
    assert_same_end(tmp_path / "run", uninterrupted())


def test_killed_run_continues_at_once_from_its_last_checkpoint(
    image_folder: Path, tmp_path: Path, teacher_file: Path, uninterrupted: Reference
) -> None:
    settings = tiny(image_folder, tmp_path / "run", teacher=teacher_file, data={"workers": 2})
    flag = tmp_path / "flag"
    process = start(settings, tmp_path / "stderr", hold_at, 6, flag)
    wait_for(flag.exists, process)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert steps_saved(tmp_path / "run") == [3]
    assert rows(tmp_path / "run")[-1]["step"] == 4  # written after the checkpoint: must not occur twice
    pretrain(**settings)  # although the orphaned data workers may still be there
    assert_same_end(tmp_path / "run", uninterrupted(teacher=teacher_file))


def test_run_killed_before_its_first_checkpoint_starts_anew(
    image_folder: Path, tmp_path: Path, uninterrupted: Reference
) -> None:
    settings = tiny(image_folder, tmp_path / "run")
    flag = tmp_path / "flag"
    process = start(settings, tmp_path / "stderr", hold_at, 3, flag)
    wait_for(flag.exists, process)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    pretrain(**settings)
    assert_same_end(tmp_path / "run", uninterrupted())


def test_run_killed_while_writing_a_checkpoint_continues_from_the_one_before(
    image_folder: Path, tmp_path: Path, teacher_file: Path, uninterrupted: Reference
) -> None:
    settings = tiny(image_folder, tmp_path / "run", teacher=teacher_file)
    process = start(settings, tmp_path / "stderr", die_in_checkpoint, 2)
    assert ended(process) == -signal.SIGKILL
    leftovers = list((tmp_path / "run" / "checkpoints").glob(".step_*.tmp"))
    assert len(leftovers) == 1 and leftovers[0].stat().st_size > 1000
    assert steps_saved(tmp_path / "run") == [3]
    pretrain(**settings)
    assert_same_end(tmp_path / "run", uninterrupted(teacher=teacher_file))
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_command_in_a_process_of_its_own_saves_on_a_signal(image_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = tiny(image_folder, run, optim={"epochs": 5000}, data={"workers": 1}, runtime={"log_every": 1})
    args = [sys.executable, "-m", "mgd_ssl.cli", "pretrain", *flags(settings)]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    try:
        saved = run / "checkpoints" / "step_00000003.pt"
        wait_for(lambda: saved.exists() or process.poll() is not None)
        process.terminate()
        _, told = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    step = steps_saved(run)[-1]
    assert process.returncode == 75
    assert f"mgd-ssl: stopped by SIGTERM after step {step}: the same command continues from there" in told
    assert "Traceback" not in told
    assert [row["step"] for row in rows(run)] == list(range(1, step + 1))


# stopped between two epochs


@pytest.mark.parametrize("what", ["rematch", "features"])
def test_a_signal_ends_the_work_between_two_epochs_at_its_next_batch(
    what: str, image_folder: Path, tmp_path: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mgd_ssl.evaluation.features import FeatureExtractor
    from mgd_ssl.tasks.moco import GuidedMoCo

    k_nn = {"train": image_folder / "train", "val": image_folder / "val", "every_epochs": 1, "k": 3}
    settings = tiny(image_folder, tmp_path / "run", teacher=teacher_file, knn=k_nn)
    owner, name = (GuidedMoCo, "student_maps") if what == "rematch" else (FeatureExtractor, "__call__")
    original, calls = getattr(owner, name), list[int]()

    def signalled(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == (2 if what == "rematch" else 5):  # after the first epoch
            signal.raise_signal(signal.SIGUSR2)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        with pytest.raises(Interrupted, match="stopped by SIGUSR2 between two epochs") as stopped:
            pretrain(**settings)
    assert stopped.value.signal_number == signal.SIGUSR2
    assert steps_saved(tmp_path / "run") == [3]
    pretrain(**settings)
    reference = tiny(image_folder, tmp_path / "reference", teacher=teacher_file, knn=k_nn)
    pretrain(**reference)
    assert_same_end(tmp_path / "run", tmp_path / "reference")

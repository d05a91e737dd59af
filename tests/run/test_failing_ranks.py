"""A rank that fails, and torchrun that is stopped: no rank waits for ever, and the run goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from mgd_ssl import pretrain
from mgd_ssl.errors import RankZeroError
from mgd_ssl.run.checkpoint import Checkpoints
from mgd_ssl.run.runtime import on_rank_zero
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from moco.dist import rank
from tests.ranks import on_ranks, settings_of_pair
from tests.runs import (
    DEADLINE,
    checkpoint,
    flags,
    free_port,
    steps_saved,
    tiny,
    wait_for,
)

# a rank that fails


def fail_on_rank_zero() -> str:
    """What a rank is told of an error of rank 0 that nobody expected."""
    dist.init_process_group("gloo")
    try:
        on_rank_zero(lambda: dict[str, str]()["missing"])
    except (KeyError, RankZeroError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        dist.destroy_process_group()
    return ""


def test_an_unexpected_error_of_rank_zero_reaches_all(tmp_path: Path) -> None:
    told = on_ranks(2, tmp_path / "ranks", fail_on_rank_zero)
    assert told == ["KeyError: 'missing'", "RankZeroError: rank 0 failed: KeyError: 'missing'"]


def run_that_fails(settings: dict[str, Any], failing: int, where: str) -> tuple[str, float]:
    """The error a rank ends with when one of them fails in its fifth step, or rank 0 when it saves; and when."""
    update, save = Update.__call__, Checkpoints.save

    def step(self: Update, inputs: Any, finished: int) -> StepOutput:
        if finished == 4 and where == "step" and rank() == failing:
            raise ArithmeticError("told to fail")
        return update(self, inputs, finished)

    def saved(self: Checkpoints, step: int, state: dict[str, Any]) -> Path:
        if step == 6 and where == "save":
            raise MemoryError("told to fail")
        return save(self, step, state)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Update, "__call__", step)
        monkeypatch.setattr(Checkpoints, "save", saved)
        try:
            pretrain(**settings)
        except Exception as error:
            return f"{type(error).__name__}: {error}", time.monotonic()
    return "", 0.0


@pytest.mark.parametrize(("failing", "where"), [(0, "step"), (1, "step"), (0, "save")])
def test_no_rank_waits_for_one_that_failed(failing: int, where: str, image_folder: Path, tmp_path: Path) -> None:
    settings = tiny(image_folder, tmp_path / "run", data={"workers": 1})
    told = on_ranks(2, tmp_path / "ranks", run_that_fails, settings, failing, where)
    assert "told to fail" in told[failing][0]
    other, _ = told[1 - failing]
    assert other.startswith("RankZeroError: rank 0 failed: MemoryError" if where == "save" else "RuntimeError")
    assert abs(told[0][1] - told[1][1]) < DEADLINE / 2  # and not after the two hours a collective may take


def launched(settings: dict[str, Any], stderr: Path) -> Any:
    """`torchrun --nproc-per-node 2 -m mgd_ssl.cli pretrain ...` as the leader of a process group."""
    options = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    args = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "mgd_ssl.cli", "pretrain", *flags(settings)]
    with stderr.open("w") as file:
        return subprocess.Popen(args, stdout=file, stderr=file, start_new_session=True)


@pytest.mark.parametrize("stopped_by", ["SIGTERM to torchrun", "Ctrl-C"])
def test_torchrun_is_stopped_and_the_run_goes_on(
    stopped_by: str, image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = settings_of_pair(image_folder, run, teacher_file)
    settings["optim"]["epochs"] = 5000
    process = launched(settings, tmp_path / "first")
    try:
        wait_for(lambda: bool(run.is_dir() and steps_saved(run)) or process.poll() is not None)
        if stopped_by == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to torchrun and to the ranks
        else:
            process.terminate()
        assert process.wait(DEADLINE) != 0
    finally:
        process.kill()
    told = (tmp_path / "first").read_text()
    step = steps_saved(run)[-1]
    # right after a checkpoint of an epoch's end the matching may be under way
    places = f"after step {step}", "between two epochs"
    assert any(f"{place}: the same command continues from there" in told for place in places), told
    assert checkpoint(run, step)["step"] == step

"""A detection through torch's elastic launcher: stopped, continued, listed."""

import os
import signal
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from launchers.runs import read_rows
from tests.launchers.conftest import SCRIPTS
from tests.runs import assert_same_end, ended, flags, processes, wait_for
from tests.runs import command as run_command
from tests.tasks.detection.shapes import write_shapes

STEPS = 6


def settings(root: Path, out: Path) -> dict[str, Any]:
    return {
        "out": out,
        "student": "thin_resnet10",
        "data": {"root": root, "train_sides": (48, 64), "val_side": 48, "longest_side": 96, "workers": 0},
        "network": {"norm": "group", "frozen_stages": 0, "pyramid_channels": 16},
        "optim": {"steps": STEPS, "batch_size": 4, "lr": 0.005},
        "runtime": {"log_every": 1, "threads": 1, "device": "cpu"},
    }


def launched(root: Path, out: Path, hold: str = "") -> ForkServerProcess:
    """`mgd-ssl launch local --procs 2 -- detect ...` in a process of its own."""
    env = {"PYTHONPATH": f"{SCRIPTS / 'hold'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    env |= {"HOLD": f"{root}:{hold}"} if hold else {}
    args = ["launch", "local", "--procs", "2", "--", "detect", *flags(settings(root, out))]
    process = processes.Process(target=run_command, args=(args, root / "said.txt", env, None), daemon=False)
    process.start()
    return process


def test_a_detection_is_launched_stopped_and_continued(tmp_path: Path) -> None:
    write_shapes(tmp_path, "train", 10, seed=0)
    write_shapes(tmp_path, "val", 3, seed=1)
    whole = launched(tmp_path, tmp_path / "whole")
    assert ended(whole) == 0, (tmp_path / "said.txt").read_text()
    process = launched(tmp_path, tmp_path / "run", hold="3")
    wait_for(lambda: all((tmp_path / f"held_3_{rank}").exists() for rank in range(2)), process)
    os.kill(process.pid or 0, signal.SIGTERM)
    assert ended(process) == 75
    (row,) = read_rows([tmp_path / "run"])
    assert row.state == "stopped"
    assert ended(launched(tmp_path, tmp_path / "run")) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole", STEPS)
    found = read_rows([tmp_path / "run", tmp_path / "whole"])
    assert [row.state for row in found] == ["finished", "finished"]

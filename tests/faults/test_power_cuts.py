"""After a power cut files may be shorter or older: rows are lost, results are not."""

import os
import random
import shutil
from pathlib import Path

import pytest

from mgd_ssl import Interrupted, pretrain
from tests.faults.failing import Patch, settings_of
from tests.runs import (
    assert_same_end,
    rows,
    stop_after,
)

# power cuts: files are shorter than the checkpoint says, or end in zeros


def test_a_power_cut_costs_rows_but_not_the_result(
    images: Path, stopped: Path, uninterrupted: Path, tmp_path: Path, rounds: int
) -> None:
    dice = random.Random(11)
    for number in range(4 * rounds):
        run = tmp_path / str(number)
        shutil.copytree(stopped, run)
        files = [run / "metrics.jsonl", run / "log.txt", run / "skipped_train.jsonl", *run.glob("tensorboard/*")]
        cut = {path: dice.randrange(path.stat().st_size + 1) for path in files if dice.random() < 0.8}
        for path, size in cut.items():
            full = path.stat().st_size
            os.truncate(path, size)
            if path.name == "metrics.jsonl" and dice.random() < 0.5:
                os.truncate(path, full)  # the length was on the disk, but not the last blocks: zeros
        before = (stopped / "metrics.jsonl").read_bytes()[: cut.get(run / "metrics.jsonl")]
        pretrain(**settings_of(images, run))
        expected = rows(uninterrupted)
        kept = before.count(b"\n")
        assert rows(run) == expected[:kept] + expected[5:], cut
        shutil.copy(uninterrupted / "metrics.jsonl", run / "metrics.jsonl")  # which has been looked at
        assert_same_end(run, uninterrupted)
        told = (run / "log.txt").read_text(errors="replace")
        assert ("as after a power cut" in told) == (kept < 5)


def test_a_power_cut_may_leave_only_an_older_checkpoint_and_a_shorter_file(
    images: Path, stopped: Path, uninterrupted: Path, tmp_path: Path, rounds: int
) -> None:
    """Cut, continued, and then back to a checkpoint from before the cut, whose count of bytes is no longer right."""
    dice = random.Random(12)
    for number in range(rounds):
        run = tmp_path / str(number)
        shutil.copytree(stopped, run)
        os.truncate(run / "metrics.jsonl", dice.randrange((run / "metrics.jsonl").stat().st_size))
        with Patch.context() as patch:
            stop_after(patch, 7)
            with pytest.raises(Interrupted):
                pretrain(**settings_of(images, run))
        for step in (6, 7):
            (run / "checkpoints" / f"step_{step:08d}.pt").unlink()
        pretrain(**settings_of(images, run))
        steps = [row["step"] for row in rows(run)]
        assert steps == sorted(set(steps)) and steps[-4:] == [6, 7, 8, 9]
        shutil.copy(uninterrupted / "metrics.jsonl", run / "metrics.jsonl")
        assert_same_end(run, uninterrupted)

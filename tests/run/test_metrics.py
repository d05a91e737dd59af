"""metrics.jsonl is cut back to whole rows of the checkpoint a run continues from."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mgd_ssl import pretrain
from mgd_ssl.run.log import RunLog
from mgd_ssl.run.metrics import MetricsFile
from tests.runs import tiny


def rows(*steps: int) -> list[dict[str, Any]]:
    return [{"kind": "train", "step": step, "loss": step / 8} for step in steps]


def saved(path: Path, *steps: int) -> int:
    """Write rows; returns the length of the file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(*steps)))
    return path.stat().st_size


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def continued(path: Path, step: int, num_bytes: int) -> MetricsFile:
    """Open the file at a checkpoint, and write a row."""
    metrics = MetricsFile(path, step, num_bytes)
    metrics.write(rows(99)[0])
    metrics.close()
    return metrics


def test_rows_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    num_bytes = saved(path, 1, 2)
    saved(path, 1, 2, 3)
    metrics = continued(path, 2, num_bytes)
    assert read(path) == rows(1, 2, 99) and metrics.complaint == "" and metrics.rows == rows(2)


def test_without_a_checkpoint_all_rows_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    saved(path, 1, 2)
    metrics = continued(path, 0, 0)
    assert read(path) == rows(99) and metrics.complaint == "" and metrics.rows == []


def test_whatever_length_is_left_whole_rows_stay_and_the_rest_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    num_bytes = saved(path, 1, 2, 3)
    content = path.read_bytes()
    for length in range(num_bytes + 1):
        for tail in (b"", bytes(num_bytes - length)):  # the rest is not there, or zeros
            path.write_bytes(content[:length] + tail)
            metrics = continued(path, 3, num_bytes)
            kept = content[:length].count(b"\n")
            assert read(path) == rows(1, 2, 3)[:kept] + rows(99)
            if kept == 3:
                assert metrics.complaint == ""
                continue
            missing = num_bytes - sum(len(line) + 1 for line in content.split(b"\n")[:kept])
            assert f"lacks {missing} bytes it had at the checkpoint of step 3" in metrics.complaint
            assert ("every row is" if not kept else f"what followed the row of step {kept} is") in metrics.complaint


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    metrics = continued(tmp_path / "metrics.jsonl", 3, 120)
    assert "lacks 120 bytes" in metrics.complaint and read(tmp_path / "metrics.jsonl") == rows(99)


def test_rows_of_later_steps_go_although_the_count_of_bytes_has_room_for_them(tmp_path: Path) -> None:
    """The file was cut before, so the bytes of an older checkpoint reach beyond its rows."""
    path = tmp_path / "metrics.jsonl"
    saved(path, 1, 5, 6)
    continued(path, 4, 10_000)
    assert read(path) == rows(1, 99)


def test_all_rows_of_the_checkpoints_step_are_known(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert continued(path, 4, saved(path, 3, 4, 4)).rows == rows(4, 4)


def test_the_log_says_what_is_missing(tmp_path: Path) -> None:
    num_bytes = saved(tmp_path / "metrics.jsonl", 1, 2, 3)
    os.truncate(tmp_path / "metrics.jsonl", num_bytes - 1)
    with RunLog(tmp_path, 9, 3, num_bytes):
        pass
    assert "WARNING" in (told := (tmp_path / "log.txt").read_text()) and "what followed the row of step 2" in told


def test_rows_are_synced_before_the_checkpoint_that_counts_on_them(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the order of the calls to the system: every checkpoint's bytes were in the file when it was last synced."""
    metrics = tmp_path / "run" / "metrics.jsonl"
    synced, names = [0], list[str]()
    fsync, rename = os.fsync, Path.rename

    def noted(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(metrics):
            synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        if target.name != "config.json":
            names.append(target.name)
            is_checkpoint = target.name.startswith("step_")
            counted = bytes_counted_by(self) if is_checkpoint else os.path.getsize(metrics)
            assert synced[-1] == counted > 0
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", renamed)
    knn = {"train": image_folder / "train", "val": image_folder / "val", "k": 3}
    pretrain(**tiny(image_folder, tmp_path / "run", knn=knn))  # whose last row follows the last checkpoint
    assert names == ["step_00000003.pt", "step_00000006.pt", "step_00000009.pt", "encoder.pt", "result.json"]


def bytes_counted_by(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["metrics_bytes"])

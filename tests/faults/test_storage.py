"""Runs on disks that are full, out of inodes, read-only or gone: a sentence, and they go on from a checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from mgd_ssl import pretrain
from mgd_ssl.cli import main
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.distillation import rematch
from mgd_ssl.run.checkpoint import Checkpoints, read_checkpoint
from mgd_ssl.run.event_file import EventFile
from mgd_ssl.run.log_file import LogFile
from mgd_ssl.run.metrics import MetricsFile
from mgd_ssl.tasks import whole_run
from tests.faults.disk import Disk
from tests.faults.failing import Captured, Patch, one_sentence, refuse, settings_of, strike
from tests.runs import (
    assert_same_end,
    flags,
    steps_saved,
    tiny,
    trained_teacher,
)

WRITERS: dict[str, tuple[Any, str, int]] = {  # the last is the call that meets the fault
    "metrics.jsonl": (MetricsFile, "write", 1),
    "log.txt": (LogFile, "emit", 1),
    "TensorBoard at its start": (EventFile, "add", 1),
    "TensorBoard": (EventFile, "add", 2),
    "checkpoint": (Checkpoints, "save", 1),
    "skipped files": (SkippedFiles, "_append", 1),
    "encoder.pt": (whole_run, "serialised", 1),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("fault", ["full", "inodes", "read-only", "moved", "removed"])
def test_a_run_whose_disk_fails_ends_with_a_sentence_and_its_last_checkpoint(
    fault: str,
    writer: str,
    disk: Disk,
    images: Path,
    stopped: Path,
    uninterrupted: Path,
    capsys: Captured,
) -> None:
    run = disk.folder / "run"
    shutil.copytree(stopped, run)
    (run / "skipped_train.jsonl").unlink()  # so that they are told anew
    left, reasons = disk.folder / "elsewhere" if fault == "moved" else run, list[str]()

    def happen(writer: object) -> None:
        if fault == "moved":
            run.rename(left)
        elif fault == "removed":
            shutil.rmtree(run)
        else:
            reasons.append(disk.fail(fault))
            refuse(writer, disk, fault)

    with Patch.context() as patch:
        calls = strike(patch, WRITERS[writer], happen)
        capsys.readouterr()
        code = main(["pretrain", *flags(settings_of(images, run))])
    disk.mend()
    told = one_sentence(code, capsys.readouterr().err)
    assert calls
    assert f"cannot be written ({reasons[0] if reasons else 'its folder was moved or removed'})" in told
    assert told.endswith(", then run the same command again")
    if fault == "removed":
        assert not run.exists()  # nor is half a run made in its place
    else:
        assert steps_saved(left)[-1] >= 5
        read_checkpoint(Checkpoints(left / "checkpoints").paths()[0])
        if writer != "log.txt" and fault != "full":
            assert told.removeprefix("mgd-ssl: ") in (left / "log.txt").read_text().splitlines()[-1]
    pretrain(**settings_of(images, left))
    assert_same_end(left, uninterrupted)


@pytest.mark.parametrize("fault", ["full", "inodes", "read-only"])
@pytest.mark.parametrize("fresh", [True, False], ids=["new run", "stopped run"])
def test_a_start_on_a_disk_that_fails_is_a_sentence(
    fault: str, fresh: bool, disk: Disk, images: Path, stopped: Path, uninterrupted: Path, capsys: Captured
) -> None:
    run = disk.folder / "run"
    if not fresh:
        shutil.copytree(stopped, run)
    disk.fail(fault)
    code = main(["pretrain", *flags(settings_of(images, run))])
    disk.mend()
    assert "cannot be written (" in one_sentence(code, capsys.readouterr().err)
    pretrain(**settings_of(images, run))
    assert_same_end(run, uninterrupted)


def test_matching_costs_meet_a_full_disk(
    disk: Disk, image_folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Captured, monkeypatch: Patch
) -> None:
    teacher = trained_teacher(tmp_path_factory.getbasetemp(), image_folder)
    save_costs = rematch.save_costs

    def full(*args: Any) -> None:
        reasons.append(disk.fail("full"))
        save_costs(*args)

    reasons: list[str] = []
    monkeypatch.setattr("mgd_ssl.tasks.pretraining.save_costs", full)
    code = main(["pretrain", *flags(tiny(image_folder, disk.folder / "run", teacher=teacher))])
    disk.mend()
    told = one_sentence(code, capsys.readouterr().err)
    assert f"matching_costs.npz cannot be written ({reasons[0]})" in told

"""Disks that are full, out of inodes, read-only or gone, power cuts, and kills at any time."""

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launchers.records import Records
from linear_eval import feature_cache as cache
from linear_eval import linear
from linear_eval.feature_cache import Writer
from mgd_ssl import Interrupted, pretrain
from mgd_ssl.cli import main
from mgd_ssl.data.pack import Packer, pack
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.distillation import rematch
from mgd_ssl.run.checkpoint import Checkpoints, read_checkpoint
from mgd_ssl.run.event_file import EventFile
from mgd_ssl.run.log_file import LogFile
from mgd_ssl.run.metrics import MetricsFile
from mgd_ssl.run.result import Evaluation
from mgd_ssl.tasks import whole_run
from tests.conftest import write_images
from tests.faults.disk import Disk, small_disk
from tests.linear_eval.conftest import BASE, weights, write_protocol
from tests.runs import (
    assert_same_end,
    command,
    ended,
    flags,
    processes,
    rows,
    steps_saved,
    stop_after,
    tiny,
    trained_teacher,
)

Patch = pytest.MonkeyPatch
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images in train/, and 4 that cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 48)
    for number in range(4):
        (folder / "train" / f"broken{number}.jpg").write_text("<html>404</html>")
    return folder


def settings_of(images: Path, out: Path) -> dict[str, Any]:
    return tiny(images, out, data={"max_unreadable": 0.5}, runtime={"log_every": 1})


@pytest.fixture(scope="module")
def uninterrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(pretrain(**settings_of(images, tmp_path_factory.mktemp("uninterrupted") / "run")).out)


@pytest.fixture(scope="module")
def stopped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after step 5 of 9."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with Patch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            pretrain(**settings_of(images, out))
    return out


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


class Refused:
    """A file of which the disk takes half a write, and then nothing more."""

    def __init__(self, file: Any, number: int) -> None:
        self.file, self.number = file, number
        self.halves = number == errno.ENOSPC

    def write(self, content: memoryview) -> int:
        if not self.halves:
            raise OSError(self.number, os.strerror(self.number))
        self.halves = False
        return int(self.file.write(content[: len(content) // 2]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def refuse(writer: object, disk: Disk, fault: str) -> None:
    """Files that are open for long meet a real fault only at the end of a page, so theirs are made."""
    number = {"full": errno.ENOSPC, "read-only": errno.EROFS}.get(fault)
    appended = getattr(writer, "_file", None)
    if disk.mounted and number and appended is not None:
        appended._file = Refused(appended._file, number)


WRITERS: dict[str, tuple[Any, str, int]] = {  # the last is the call that meets the fault
    "metrics.jsonl": (MetricsFile, "write", 1),
    "log.txt": (LogFile, "emit", 1),
    "TensorBoard at its start": (EventFile, "add", 1),
    "TensorBoard": (EventFile, "add", 2),
    "checkpoint": (Checkpoints, "save", 1),
    "skipped files": (SkippedFiles, "_append", 1),
    "encoder.pt": (whole_run, "serialised", 1),
}


def strike(patch: Patch, writer: tuple[Any, str, int], fault: Callable[[object], None]) -> list[int]:
    """Have the fault happen right before a call of a writer; returns what the calls are counted in."""
    owner, name, at = writer
    original, calls = getattr(owner, name), list[int]()

    def struck_before(*args: Any) -> Any:
        calls.append(at)
        if len(calls) == at:
            fault(args[0])
        return original(*args)

    patch.setattr(owner, name, struck_before)
    return calls


def one_sentence(code: int, told: str, expected: int = 3) -> str:
    """The sentence a command ended with."""
    assert code == expected, told
    lines = [line for line in told.splitlines() if line.startswith("mgd-ssl: ")]
    assert len(lines) == 1 and lines[0] == told.splitlines()[-1], told
    assert "Traceback" not in told and "Exception" not in told
    return lines[0]


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


# the other commands


@pytest.fixture
def evaluation(tmp_path: Path, image_folder: Path, disk: Disk) -> dict[str, Any]:
    """Settings of a linear evaluation of seconds, whose folder lies on the small disk."""
    return {
        "checkpoint": weights(tmp_path / "weights.pt"),
        "data": image_folder,
        "out": disk.folder / "out",
        "protocol": str(write_protocol(tmp_path / "small.toml", BASE)),
        "image_size": 32,
        "workers": 0,
        "runtime": {"device": "cpu", "threads": 1},
    }


def contents(out: Path, *patterns: str) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for pattern in patterns for p in out.rglob(pattern) if p.is_file()}


RESULTS = ("result.json", "head.pt", "*.npy")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> dict[str, bytes]:
    """What an evaluation on a good disk leaves."""
    folder = tmp_path_factory.mktemp("evaluated")
    linear(
        checkpoint=weights(folder / "weights.pt"), data=image_folder, out=folder / "out", image_size=32, workers=0,
        protocol=str(write_protocol(folder / "small.toml", BASE)), runtime={"device": "cpu", "threads": 1},
    )  # fmt: skip
    return contents(folder / "out", *RESULTS)


LINEAR_WRITERS: dict[str, tuple[Any, str, int]] = {
    "features": (Writer, "write", 1),
    "second table": (Writer, "write", 2),
    "name of a table": (Writer, "finish", 1),
    "metrics.jsonl": (MetricsFile, "write", 1),
    "log.txt": (LogFile, "emit", 2),
    "evaluation": (Evaluation, "save", 1),
}


@pytest.mark.parametrize("writer", LINEAR_WRITERS)
@pytest.mark.parametrize("fault", ["full", "inodes", "read-only"])
def test_an_evaluation_whose_disk_fails_is_a_sentence(
    fault: str, writer: str, disk: Disk, evaluation: dict[str, Any], evaluated: dict[str, bytes], capsys: Captured
) -> None:

    def happen(writer: object) -> None:
        disk.fail(fault)
        refuse(writer, disk, fault)

    with Patch.context() as patch:
        strike(patch, LINEAR_WRITERS[writer], happen)
        code = main(["linear", *flags(evaluation)])
    disk.mend()
    told = capsys.readouterr().err
    assert "cannot be written (" in one_sentence(code, told)
    linear(**evaluation)
    assert contents(evaluation["out"], *RESULTS) == evaluated


def small_parts(folder: Path) -> None:
    """Have features computed 8 at a time, and the disk full before the fourth time."""
    cache.BATCH, cache.PART_SECONDS = 8, 0
    write, calls = Writer.write, list[int]()

    def full(self: Writer, part: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            Disk.fail(disk_on(folder), "full")
        write(self, part)

    Writer.write = full  # type: ignore[method-assign]


def disk_on(folder: Path) -> Disk:
    """A disk that is mounted already."""
    disk = Disk.__new__(Disk)
    disk.folder, disk.mounted = folder, os.path.ismount(folder)
    disk._limit, disk._covered = (-1, -1), False
    return disk


def test_a_disk_that_fills_under_the_mapped_tables_kills_nobody(
    disk: Disk, evaluation: dict[str, Any], tmp_path: Path, monkeypatch: Patch
) -> None:
    """The tables are mapped: pages that find no room end a process by SIGBUS. The parts before are kept."""
    monkeypatch.setattr(cache, "BATCH", 8)
    monkeypatch.setattr(cache, "PART_SECONDS", 0)
    linear(**evaluation | {"out": tmp_path / "whole"})
    args: tuple[Any, ...] = (
        ["linear", *flags(evaluation)],
        tmp_path / "first.txt",
        {},
        small_parts,
        disk.folder,
    )
    process = processes.Process(target=command, args=args, daemon=False)
    process.start()
    code = ended(process)
    disk.mend()
    assert "cannot be written (" in one_sentence(code, (tmp_path / "first.txt").read_text())
    linear(**evaluation)
    [log] = evaluation["out"].rglob("log.txt")
    assert "features of train: continuing after 8 of 48" in log.read_text()
    assert contents(evaluation["out"], *RESULTS) == contents(tmp_path / "whole", *RESULTS)


@pytest.mark.parametrize("fault", ["full", "inodes", "read-only", "moved"])
def test_a_pack_whose_disk_fails_is_a_sentence_and_goes_on(
    fault: str, disk: Disk, image_folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: Patch
) -> None:
    out, left = disk.folder / "out", disk.folder / ("elsewhere" if fault == "moved" else "out")
    args = ["pack", str(image_folder / "train"), str(out), "--shard-images", "12", "--workers", "0"]
    write = Packer._write

    def struck_before(self: Packer, number: int, *rest: Any) -> None:
        if number == 2:
            out.rename(left) if fault == "moved" else disk.fail(fault)
        write(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Packer, "_write", struck_before)
        code = main(args)
    disk.mend()
    assert "out cannot be written (" in one_sentence(code, capsys.readouterr().err)
    assert sorted(path.name for path in left.glob("*.tar")) == ["shard-000000.tar", "shard-000001.tar"]
    settings: dict[str, Any] = {"images": image_folder / "train", "shard_images": 12, "workers": 0}
    for folder in (left, tmp_path / "whole"):
        pack(out=folder, **settings)
    assert contents(left, "*.tar", "shards.index") == contents(tmp_path / "whole", "*.tar", "shards.index")
    assert not list(left.glob(".*.tmp"))


@pytest.mark.parametrize("fault", ["full", "inodes", "read-only"])
@pytest.mark.parametrize("what", ["knn", "report", "launch", "demo"])
def test_other_commands_on_a_disk_that_fails_are_a_sentence(
    fault: str, what: str, disk: Disk, image_folder: Path, uninterrupted: Path, capsys: Captured
) -> None:
    out = str(disk.folder / "out")
    commands = {
        "knn": ["knn", "--checkpoint", str(uninterrupted), "--data", str(image_folder), "--k", "1", "--workers", "0"],
        "report": ["report", str(uninterrupted), "--out", f"{out}/report.html"],
        "launch": ["launch", "local", "--procs", "2", "--", "pretrain", *flags(tiny(image_folder, Path(out)))],
        "demo": ["demo", "--out", out],
    }
    own = ["--out", out, "--runtime.device", "cpu", "--runtime.threads", "1"] if what == "knn" else []
    reason = disk.fail(fault)
    code = main([*commands[what], *own])
    disk.mend()
    assert f"cannot be written ({reason})" in one_sentence(code, capsys.readouterr().err)


def test_a_disk_that_fills_after_a_launch_is_told_once(
    disk: Disk, image_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Patch
) -> None:
    """No process can record its start, nor that it failed."""
    write = Records.write

    def full_after(self: Records, record: Any) -> None:
        write(self, record)
        disk.fail("full")

    monkeypatch.setattr(Records, "write", full_after)
    words = ["launch", "local", "--procs", "1", "--", "pretrain", *flags(tiny(image_folder, disk.folder / "run"))]
    assert main(words) == 3
    disk.mend()
    told = capfd.readouterr().err
    if disk.mounted:  # else what is told goes to a file, which the limit holds for as well
        assert "cannot be written (No space left on device): make room" in one_sentence(3, told)


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


# kills at any time


def killed(args: list[str], after: float, stderr: Path) -> bool:
    """Start a command and kill it after some seconds; whether it was still there."""
    process = processes.Process(target=command, args=(args, stderr, {}, None), daemon=False)
    process.start()
    time.sleep(after)
    process.kill()
    return ended(process) == -signal.SIGKILL


def test_a_killed_evaluation_ends_as_one_that_was_not(
    evaluation: dict[str, Any], evaluated: dict[str, bytes], tmp_path: Path, rounds: int
) -> None:
    dice, longest = random.Random(13), 3.0
    for number in range(2 * rounds):
        out = tmp_path / str(number)
        args = ["linear", *flags(evaluation | {"out": out})]
        while killed(args, dice.uniform(0, longest), tmp_path / "killed.txt") and dice.random() < 0.5:
            pass
        linear(**evaluation | {"out": out})
        assert contents(out, *RESULTS) == evaluated
        assert not list(out.rglob(".*.tmp")) and not list(out.rglob(".*.unfinished"))


def test_a_killed_pack_ends_as_one_that_was_not(image_folder: Path, tmp_path: Path, rounds: int) -> None:
    dice, longest = random.Random(14), 1.0
    settings: dict[str, Any] = {"images": image_folder / "train", "shard_images": 5, "short_side": 30, "workers": 1}
    pack(out=tmp_path / "whole", **settings)
    words = ["--shard-images", "5", "--short-side", "30", "--workers", "1"]
    for number in range(3 * rounds):
        out = tmp_path / str(number)
        args = ["pack", str(image_folder / "train"), str(out), *words]
        while killed(args, dice.uniform(0, longest), tmp_path / "killed.txt") and dice.random() < 0.5:
            pass
        pack(out=out, **settings)
        assert contents(out, "*.tar", "shards.index") == contents(tmp_path / "whole", "*.tar", "shards.index")
        assert not list(out.rglob(".*.tmp")) and not list(out.rglob(".part*"))

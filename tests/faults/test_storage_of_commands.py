"""Evaluations, packs and launches on a disk that fails, or killed: a sentence, and they go on."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from launchers.records import Records
from linear_eval import feature_cache as cache
from linear_eval import linear
from linear_eval.feature_cache import Writer
from mgd_ssl.cli import main
from mgd_ssl.data.pack import Packer, pack
from mgd_ssl.run.log_file import LogFile
from mgd_ssl.run.metrics import MetricsFile
from mgd_ssl.run.result import Evaluation
from tests.faults.disk import Disk
from tests.faults.failing import Captured, Patch, one_sentence, refuse, strike
from tests.linear_eval.conftest import BASE, weights, write_protocol
from tests.runs import (
    command,
    ended,
    flags,
    processes,
    tiny,
)

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

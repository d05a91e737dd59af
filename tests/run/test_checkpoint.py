"""Checkpoints are written whole or not at all, and what was there before survives."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mgd_ssl import TrainingError, UserError
from mgd_ssl.files import write_whole
from mgd_ssl.run.checkpoint import FORMAT, Checkpoints, read_checkpoint, serialised
from tests.runs import ended, processes

ROOM = 256 * 1024  # bytes of the small disk


def state(size: int = 4, step: int = 1) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "step": step,
        "weights": torch.arange(float(size)),
        "meter": {"sums": [1.0, 2.0]},
        "name": None,
    }


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk of `ROOM` bytes on a folder.

    Raises:
        PermissionError: where that is not allowed.
    """
    args = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    try:
        subprocess.run(args, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PermissionError("no disk can be mounted here") from error
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_up(folder: Path, reason: str) -> None:
    """Save a checkpoint that fits, then one that does not."""
    checkpoints = Checkpoints(folder / "checkpoints")
    first = checkpoints.save(1, state())
    with pytest.raises(TrainingError) as failure:
        checkpoints.save(2, state(ROOM, 2))  # four times the room
    told = str(failure.value)
    assert f"{folder / 'checkpoints' / 'step_00000002.pt'} cannot be written ({reason})" in told
    assert f"the one before, {first}, is kept" in told and "make room" in told
    assert os.listdir(folder / "checkpoints") == ["step_00000001.pt"]
    warnings: list[str] = []
    assert checkpoints.newest_whole(warnings.append) == first and not warnings
    assert torch.equal(torch.load(first, weights_only=True)["weights"], torch.arange(4.0))
    again = checkpoints.save(2, state(step=2))  # once there is room
    assert checkpoints.newest_whole(warnings.append) == again


def fill_up_under_a_limit(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))  # Python ignores SIGXFSZ: writing fails with EFBIG
    fill_up(folder, "File too large")


def test_full_disk_stops_with_the_reason_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path):
            fill_up(tmp_path, "No space left on device")
    except PermissionError:
        process = processes.Process(target=fill_up_under_a_limit, args=(tmp_path,))
        process.start()
        assert ended(process) == 0


def test_file_that_grows_too_large_is_told_alike(tmp_path: Path) -> None:
    process = processes.Process(target=fill_up_under_a_limit, args=(tmp_path,))
    process.start()
    assert ended(process) == 0


def test_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(path, bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_write_replaces_the_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old and long")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "file", b"new")


def test_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(TrainingError, match=r"cannot be written \(File exists\) and there is none before it"):
        Checkpoints(tmp_path / "checkpoints").save(1, state())


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_survive(keep: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep)
    for step in (5, 10, 15, 20):
        checkpoints.save(step, state(step, step))
    steps = [int(torch.load(path, weights_only=True)["step"]) for path in checkpoints.paths()]
    assert steps == [20, 15, 10][:keep]


def test_newest_is_the_largest_step_whatever_the_clock_says(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=9)
    paths = {step: checkpoints.save(step, state(step=step)) for step in (9, 100_000_000, 99_999_999, 10)}
    os.utime(paths[9], (2e9, 2e9))
    assert checkpoints.paths() == [paths[step] for step in (100_000_000, 99_999_999, 10, 9)]
    assert checkpoints.newest_whole(pytest.fail) == paths[100_000_000]


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    others = ["step_7.pt.bak", "notes.txt", "step_x.pt"]
    for name in others:
        (tmp_path / name).write_text("mine")
    saved = checkpoints.save(3, state())
    assert checkpoints.paths() == [saved]
    assert sorted(os.listdir(tmp_path)) == sorted([*others, saved.name])


def test_leftover_of_a_killed_process_is_removed_by_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".step_00000002.pt.99.tmp").write_bytes(b"half")
    saved = Checkpoints(tmp_path).save(3, state())
    assert os.listdir(tmp_path) == [saved.name]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "missing").newest_whole(pytest.fail) is None
    assert Checkpoints(tmp_path).newest_whole(pytest.fail) is None


@pytest.mark.parametrize("content", [b"", b"half", None], ids=["empty", "garbage", "truncated"])
def test_damaged_checkpoint_is_told_and_passed_over(content: bytes | None, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    good, bad = checkpoints.save(1, state()), checkpoints.save(2, state(1000, 2))
    bad.write_bytes(bad.read_bytes()[:2000] if content is None else content)
    warnings: list[str] = []
    assert checkpoints.newest_whole(warnings.append) == good
    assert len(warnings) == 1
    assert str(bad) in warnings[0] and "going back to the checkpoint before it" in warnings[0]


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state()).write_bytes(b"half")
    warnings: list[str] = []
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole: restore one, or start a new --out"):
        checkpoints.newest_whole(warnings.append)
    assert len(warnings) == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoints_take_no_place_of_whole_ones(keep: int, tmp_path: Path) -> None:
    first = Checkpoints(tmp_path, keep=9)
    good = first.save(10, state(step=10))
    first.save(30, state(step=30)).write_bytes(b"PK half")
    going_on = Checkpoints(tmp_path, keep)
    assert going_on.newest_whole(lambda told: None) == good
    names = [going_on.save(20, state(step=20)).name]
    assert {path.name for path in going_on.paths()} == {"step_00000030.pt", "step_00000020.pt", good.name} - (
        {good.name} if keep == 1 else set()
    )
    names.append(going_on.save(40, state(step=40)).name)
    assert sorted(path.name for path in going_on.paths()) == sorted(names[-keep:])  # its step is passed: it is gone
    going_on = Checkpoints(tmp_path, keep)
    (tmp_path / "step_00000040.pt").write_bytes(b"")
    if keep == 2:
        assert going_on.newest_whole(lambda told: None) == tmp_path / "step_00000020.pt"
        again = going_on.save(40, state(step=40))
        assert going_on.paths() == [again, tmp_path / "step_00000020.pt"]


def test_a_state_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(1, {**state(), "metrics_bytes": 0})
    reads: list[Path] = []

    def counted(path: Path) -> dict[str, Any]:
        reads.append(path)
        return read_checkpoint(path)

    monkeypatch.setattr("mgd_ssl.run.checkpoint.read_checkpoint", counted)
    assert checkpoints.newest_whole(pytest.fail) == path
    found = checkpoints.read(path)
    assert reads == [path] and torch.equal(found["weights"], state()["weights"])
    assert checkpoints.read(path)["step"] == 1 and len(reads) == 2  # memory is not held on to


def test_states_without_a_step_or_a_format_are_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=9)
    good = checkpoints.save(1, state())
    for step, key in enumerate(("format", "step"), start=2):
        checkpoints.save(step, {name: value for name, value in state(step=step).items() if name != key})
    checkpoints.save(5, state(step=4))
    warnings: list[str] = []
    assert checkpoints.newest_whole(warnings.append) == good
    assert "holds step 4 and not that of its name" in warnings[0]
    assert ["is no checkpoint of a run" in told for told in warnings] == [False, True, True]


def test_serialised_state_loads_without_running_code(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_whole(path, serialised(state()))
    loaded = torch.load(path, weights_only=True)
    assert torch.equal(loaded.pop("weights"), torch.arange(4.0))
    assert loaded == {"format": FORMAT, "step": 1, "meter": {"sums": [1.0, 2.0]}, "name": None}

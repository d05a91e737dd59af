"""Temporary files of killed processes go, those of living ones stay."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mgd_ssl import pretrain
from mgd_ssl.files import sweep, whole_file, write_whole
from tests.runs import ended, processes, tiny, wait_for


def die_writing(path: Path) -> None:
    with whole_file(path) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def keep_writing(path: Path, flag: Path) -> None:
    with whole_file(path) as file:
        flag.touch()
        wait_for(lambda: not flag.exists())
        file.write(b"whole")


def killed(path: Path) -> Path:
    process = processes.Process(target=die_writing, args=(path,))
    process.start()
    assert ended(process) == -signal.SIGKILL
    [leftover] = path.parent.glob(f".{path.name}.*.tmp")
    return leftover


@pytest.mark.parametrize("again", [lambda path: sweep(path.parent), lambda path: write_whole(path, b"new")])
def test_a_leftover_goes_and_a_file_being_written_stays(again: Callable[[Path], None], tmp_path: Path) -> None:
    path, flag = tmp_path / "result.json", tmp_path / "flag"
    (tmp_path / ".notes.12.tmp.mine").write_text("somebody's")
    leftover = killed(path)
    process = processes.Process(target=keep_writing, args=(path, flag))
    process.start()
    wait_for(flag.exists, process)
    [writing] = set(tmp_path.glob(".result.json.*.tmp")) - {leftover}
    again(path)
    assert not leftover.exists() and writing.exists()
    flag.unlink()
    assert ended(process) == 0
    assert path.read_bytes() == b"whole"
    assert not list(tmp_path.glob(".result*"))
    assert (tmp_path / ".notes.12.tmp.mine").exists()


def test_other_names_are_left_alone_where_the_folder_is_not_ours(tmp_path: Path) -> None:
    leftover = killed(tmp_path / "other.json")
    write_whole(tmp_path / "result.json", b"new")
    assert leftover.exists()


def test_a_run_sweeps_its_folders_when_it_starts(image_folder: Path, tmp_path: Path) -> None:
    settings = tiny(image_folder, tmp_path / "run", optim={"epochs": 1})
    pretrain(**settings)
    jobs = tmp_path / "run" / "jobs" / "1_pretrain"
    jobs.mkdir(parents=True)
    names = "encoder.pt", "matching_costs.npz", "checkpoints/step_00000009.pt", "jobs/1_pretrain/end_0.json"
    leftovers = [killed(tmp_path / "run" / name) for name in names]
    pretrain(**settings)  # finished: writes nothing
    assert [path for path in leftovers if path.exists()] == []

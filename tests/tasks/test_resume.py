"""A run that is continued ends like one that was not interrupted; one of other settings is refused."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mgd_ssl import Interrupted, UserError, pretrain
from tests.conftest import write_images
from tests.runs import (
    Reference,
    assert_same_end,
    ended,
    hold_at,
    rows,
    start,
    steps_saved,
    stop_after,
    tiny,
    wait_for,
)


@pytest.fixture(scope="module")
def stopped_once(image_folder: Path, tmp_path_factory: pytest.TempPathFactory, teacher_file: Path) -> Path:
    """Folder of a guided run that was stopped after step 5 of 9, with checkpoints of steps 3 and 5."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(monkeypatch, 5)
        with pytest.raises(Interrupted):
            pretrain(**tiny(image_folder, run, teacher=teacher_file))
    return run


@pytest.fixture
def stopped(stopped_once: Path, image_folder: Path, tmp_path: Path, teacher_file: Path) -> dict[str, Any]:
    """Settings of a stopped run, whose folder this test may change."""
    shutil.copytree(stopped_once, tmp_path / "run")
    return tiny(image_folder, tmp_path / "run", teacher=teacher_file)


# stopped in this process, at a chosen step; steps 3 and 6 end an epoch, after step 3 the matching is updated


@pytest.mark.parametrize(
    ("step", "guided", "changes"),
    [
        pytest.param(1, True, {}, id="first step"),
        pytest.param(3, True, {}, id="right before a matching update"),
        pytest.param(5, True, {}, id="middle of an epoch"),
        pytest.param(6, True, {}, id="end of an epoch"),
        pytest.param(1, False, {}, id="first step without teacher"),
        pytest.param(5, False, {}, id="middle of an epoch without teacher"),
        pytest.param(4, True, {"mgd": {"reducer": "random_drop", "margin": "measured"}}, id="random drop"),
        pytest.param(5, True, {"runtime": {"precision": "bfloat16"}}, id="bfloat16"),
        pytest.param(4, True, {"runtime": {"precision": "float16"}}, id="float16"),
    ],
)
def test_continued_run_ends_like_an_uninterrupted_one(
    step: int,
    guided: bool,
    changes: dict[str, Any],
    uninterrupted: Reference,
    image_folder: Path,
    tmp_path: Path,
    teacher_file: Path,
) -> None:
    changes = {**changes, "teacher": teacher_file} if guided else changes
    settings = tiny(image_folder, tmp_path / "run", **changes)
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(monkeypatch, step)
        with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {step}: the same command continues"):
            pretrain(**settings)
    assert steps_saved(tmp_path / "run")[-1] == step
    pretrain(**settings)
    assert_same_end(tmp_path / "run", uninterrupted(**changes))


def test_number_of_workers_may_change(
    stopped: dict[str, Any], image_folder: Path, uninterrupted: Reference, teacher_file: Path
) -> None:
    pretrain(**tiny(image_folder, stopped["out"], teacher=teacher_file, data={"workers": 2}))
    assert_same_end(stopped["out"], uninterrupted(teacher=teacher_file))


def test_backend_of_the_views_may_change(stopped: dict[str, Any], image_folder: Path, teacher_file: Path) -> None:
    pretrain(**tiny(image_folder, stopped["out"], teacher=teacher_file, data={"backend": "device", "workers": 1}))
    told = (stopped["out"] / "log.txt").read_text()
    assert "views: backend cpu (auto)" in told and "views: backend device" in told
    assert steps_saved(stopped["out"])[-1] == 9


def test_knn_rows_of_a_continued_run_are_those_of_an_uninterrupted_one(
    image_folder: Path, tmp_path: Path, uninterrupted: Reference
) -> None:
    knn = {"train": image_folder / "train", "val": image_folder / "val", "every_epochs": 1, "k": 3}
    settings = tiny(image_folder, tmp_path / "run", knn=knn)
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(monkeypatch, 3)
        with pytest.raises(Interrupted):
            pretrain(**settings)
    result = pretrain(**settings)
    assert_same_end(tmp_path / "run", uninterrupted(knn=knn))
    assert {"top1", "top5", "random_top1", "random_top5"} == result.knn.keys()
    assert [row["step"] for row in rows(tmp_path / "run") if row["kind"] == "knn"] == [0, 3, 6, 9]


# damaged and finished runs


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_truncated_checkpoint_gives_way_to_the_one_before(
    stopped: dict[str, Any], uninterrupted: Reference, teacher_file: Path
) -> None:
    newest = stopped["out"] / "checkpoints" / "step_00000005.pt"
    truncate(newest)
    pretrain(**stopped)
    assert_same_end(stopped["out"], uninterrupted(teacher=teacher_file))
    told = (stopped["out"] / "log.txt").read_text()
    assert f"WARNING {newest} is truncated or damaged" in told and "going back to the checkpoint before it" in told


def test_run_without_a_whole_checkpoint_is_refused(stopped: dict[str, Any]) -> None:
    for path in (stopped["out"] / "checkpoints").glob("step_*.pt"):
        truncate(path)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole: restore one, or start a new --out"):
        pretrain(**stopped)


def test_finished_run_returns_at_once(image_folder: Path, tmp_path: Path) -> None:
    settings = tiny(image_folder, tmp_path / "run", optim={"epochs": 1})
    first = pretrain(**settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    assert pretrain(**settings) == first
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    assert after == before


# refusals


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optim": {"lr": 0.5}}, r"optim\.lr: 0\.03 -> 0\.5"),
        ({"seed": 3, "moco": {"dim": 8}}, r"moco\.dim: 16 -> 8; seed: 0 -> 3"),
        ({"student": "thin_resnet14"}, r"student: thin_resnet10 -> thin_resnet14"),
    ],
)
def test_other_settings_are_refused_by_name(
    changes: dict[str, Any], told: str, stopped: dict[str, Any], image_folder: Path, teacher_file: Path
) -> None:
    with pytest.raises(UserError, match=f"{told}.*restore them, or choose another --out"):
        pretrain(**tiny(image_folder, stopped["out"], teacher=teacher_file, **changes))


def test_other_images_are_refused(stopped: dict[str, Any], tmp_path: Path) -> None:
    write_images(tmp_path / "more", 49)
    with pytest.raises(UserError, match=r"the images of data\.train: 48 -> 49"):
        pretrain(**{**stopped, "data": {**stopped["data"], "train": tmp_path / "more"}})


def test_images_may_move(stopped: dict[str, Any], tmp_path: Path, uninterrupted: Reference, teacher_file: Path) -> None:
    shutil.copytree(stopped["data"]["train"], tmp_path / "moved")
    pretrain(**{**stopped, "data": {**stopped["data"], "train": tmp_path / "moved"}})
    assert_same_end(stopped["out"], uninterrupted(teacher=teacher_file))


def test_another_teacher_file_is_refused(stopped: dict[str, Any], tmp_path: Path, uninterrupted: Reference) -> None:
    other = uninterrupted() / "encoder.pt"
    with pytest.raises(UserError, match=r"teacher: thin_resnet14 \w{12} -> thin_resnet10 \w{12}"):
        pretrain(**{**stopped, "teacher": other})


def test_a_run_without_the_teacher_is_refused(stopped: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"teacher: thin_resnet14 \w{12} -> None"):
        pretrain(**{**stopped, "teacher": None})


def test_folder_in_use_is_refused(image_folder: Path, tmp_path: Path) -> None:
    settings = tiny(image_folder, tmp_path / "run", optim={"epochs": 1})
    flag = tmp_path / "flag"
    process = start(settings, tmp_path / "stderr", hold_at, 1, flag)
    wait_for(flag.exists, process)
    with pytest.raises(UserError, match=r"run is in use by another process: wait for it, or choose another --out"):
        pretrain(**settings)
    flag.unlink()
    assert ended(process) == 0  # not disturbed
    assert (tmp_path / "run" / "result.json").exists()


def test_folder_that_holds_something_else_is_refused(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="run is not empty and holds no run: choose another --out"):
        pretrain(**tiny(image_folder, tmp_path / "run"))
    assert os.listdir(tmp_path / "run") == ["thesis.tex"]


def test_folder_that_cannot_be_made_is_refused(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be written \(Not a directory\): choose another --out"):
        pretrain(**tiny(image_folder, tmp_path / "file" / "run"))


def test_file_in_place_of_the_folder_is_refused(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"run cannot be written \(File exists\)"):
        pretrain(**tiny(image_folder, tmp_path / "run"))

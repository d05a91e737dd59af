"""What a start that fails leaves behind, and how the one that corrects it goes."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mgd_ssl import TrainingError, UserError, pretrain
from mgd_ssl.cli import main
from mgd_ssl.commands.pretrain import check
from mgd_ssl.errors import exit_code
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from tests.conftest import write_images
from tests.runs import assert_same_end, ended, flags, hold_at, rows, start, steps_saved, tiny, wait_for


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, error: Exception) -> None:
    """Have runs of this process fail in a step, counted from 1."""
    update = Update.__call__

    def failing(self: Update, inputs: Any, finished: int) -> StepOutput:
        if finished == step - 1:
            raise error
        return update(self, inputs, finished)

    monkeypatch.setattr(Update, "__call__", failing)


def described(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((run / "config.json").read_text())["config"]
    return config


def test_after_a_wrong_knn_folder_the_corrected_command_runs(image_folder: Path, tmp_path: Path) -> None:
    knn = {"train": image_folder / "train", "val": image_folder / "vall", "k": 3}
    with pytest.raises(UserError):
        pretrain(**tiny(image_folder, tmp_path / "run", knn=knn))
    right = {"knn": knn | {"val": image_folder / "val"}, "optim": {"lr": 0.01}, "seed": 4}
    assert check(flags(tiny(image_folder, tmp_path / "run", **right))) == tmp_path / "run"
    pretrain(**tiny(image_folder, tmp_path / "run", **right))
    pretrain(**tiny(image_folder, tmp_path / "fresh", **right))
    assert_same_end(tmp_path / "run", tmp_path / "fresh")
    saved = described(tmp_path / "run")
    assert saved["optim"]["lr"] == 0.01 and saved["knn"]["val"] == str(image_folder / "val")


def test_after_too_little_memory_for_the_first_step_other_settings_are_taken(
    image_folder: Path, tmp_path: Path, teacher_file: Path
) -> None:
    """The matching of the untrained student is in metrics.jsonl by then, and files that are no images are noted."""
    images = shutil.copytree(image_folder, tmp_path / "images")
    (images / "train" / "notes.txt").write_text("no image")
    settings = tiny(images, tmp_path / "run", teacher=teacher_file)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fail_at(monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory"))
        with pytest.raises(torch.OutOfMemoryError):
            pretrain(**settings)
    assert [row["kind"] for row in rows(tmp_path / "run")] == ["matching"]
    left = set(os.listdir(tmp_path / "run"))
    assert {"matching_costs.npz", "skipped_train.jsonl"} <= left
    pretrain(**tiny(image_folder, tmp_path / "run", optim={"batch_size": 8}))  # other images, and no teacher
    pretrain(**tiny(image_folder, tmp_path / "fresh", optim={"batch_size": 8}))
    assert_same_end(tmp_path / "run", tmp_path / "fresh", step=18)
    assert not {"matching_costs.npz", "skipped_train.jsonl"} & set(os.listdir(tmp_path / "run"))


def test_a_damaged_description_of_a_failed_start_is_written_anew(image_folder: Path, tmp_path: Path) -> None:
    settings = tiny(image_folder, tmp_path / "run", optim={"epochs": 1})
    for content in ("", "{", "[1]"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.json").write_text(content)
        pretrain(**settings)
        assert described(tmp_path / "run")["student"] == "thin_resnet10"


def trained_rows(run: Path) -> None:
    """Steps whose rows are there, though no checkpoint."""
    shutil.rmtree(run / "checkpoints")


def other_file(run: Path) -> None:
    """Something a start would not have made."""
    trained_rows(run)
    (run / "metrics.jsonl").unlink()
    (run / "notes.txt").write_text("mine")


@pytest.mark.parametrize("leave", [trained_rows, other_file, lambda run: (run / "metrics.jsonl").unlink()])
def test_a_run_that_has_trained_keeps_its_settings(
    leave: Callable[[Path], None], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(image_folder, tmp_path / "run", runtime={"log_every": 1})
    fail_at(monkeypatch, 5, RuntimeError("a bug"))
    with pytest.raises(RuntimeError):
        pretrain(**settings)
    leave(tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    changed = tiny(image_folder, tmp_path / "run", optim={"lr": 0.5}, runtime={"log_every": 1})
    with pytest.raises(UserError, match=r"optim\.lr: 0\.03 -> 0\.5"):
        pretrain(**changed)
    with pytest.raises(UserError, match=r"optim\.lr: 0\.03 -> 0\.5"):
        check(flags(changed))
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_settings_are_not_taken_over_from_a_process_before_its_first_step(image_folder: Path, tmp_path: Path) -> None:
    settings = tiny(image_folder, tmp_path / "run", optim={"epochs": 1})
    flag = tmp_path / "flag"
    process = start(settings, tmp_path / "stderr", hold_at, 1, flag)
    wait_for(flag.exists, process)
    before = (tmp_path / "run" / "config.json").read_bytes()
    other = settings | {"seed": 5}
    with pytest.raises(UserError, match="in use by another process"):
        pretrain(**other)
    with pytest.raises(UserError, match="seed: 0 -> 5"):
        check(flags(other))
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    flag.unlink()
    assert ended(process) == 0
    assert steps_saved(tmp_path / "run") == [3]


# what is told when a run stops


@pytest.mark.parametrize(("step", "code"), [(1, 2), (2, 3), (5, 3)])
def test_what_is_at_fault_after_a_step_ends_with_3(
    step: int, code: int, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, step, UserError("the folder is gone: bring it back"))
    args = ["pretrain", *flags(tiny(image_folder, tmp_path / "run"))]
    assert exit_code(lambda: main(args)) == code


@pytest.mark.parametrize(("step", "kept"), [(1, None), (5, 3)])
@pytest.mark.parametrize("what", ["loss", "weights"])
def test_a_checkpoint_is_said_to_be_kept_only_when_there_is_one(
    what: str, step: int, kept: int | None, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Update.__call__

    def broken(self: Update, inputs: Any, finished: int) -> StepOutput:
        output = update(self, inputs, finished)
        if finished == step - 1:
            if what == "loss":
                return output._replace(losses={"contrastive": output.total * torch.nan})
            with torch.no_grad():
                next(self.module.parameters()).fill_(torch.inf)
        return output

    monkeypatch.setattr(Update, "__call__", broken)
    settings = tiny(image_folder, tmp_path / "run", checkpoint={"every_steps": step}, runtime={"log_every": 100})
    last = tmp_path / "run" / "checkpoints" / f"step_{kept or 0:08d}.pt"
    told = f"the last checkpoint, {last}, is kept" if kept else "there is no checkpoint yet"
    with pytest.raises(TrainingError, match=rf"the {what} .*not finite and {told}: lower"):
        pretrain(**settings)


# teachers


def test_a_teacher_whose_run_is_unfinished_is_warned_of(
    image_folder: Path, tmp_path: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warnings(out: str, teacher: Path) -> list[str]:
        settings = tiny(image_folder, tmp_path / out, teacher=teacher, optim={"epochs": 1})
        pretrain(**settings)
        return [line for line in (tmp_path / out / "log.txt").read_text().splitlines() if "WARNING" in line]

    with monkeypatch.context() as patch:
        fail_at(patch, 8, RuntimeError("a bug"))
        with pytest.raises(RuntimeError):
            pretrain(**tiny(image_folder, tmp_path / "teacher", student="thin_resnet14"))
    [line] = warnings("unfinished", tmp_path / "teacher")
    assert f"the teacher's run {tmp_path / 'teacher'} is unfinished: its weights are those of step 6 of 9" in line
    assert warnings("of a file", tmp_path / "teacher" / "checkpoints" / "step_00000006.pt") == []
    pretrain(**tiny(image_folder, tmp_path / "teacher", student="thin_resnet14"))
    assert warnings("finished", tmp_path / "teacher") == []
    (tmp_path / "teacher" / "encoder.pt").unlink()
    assert warnings("without its encoder", tmp_path / "teacher") == []  # the newest checkpoint is that of the end


def test_images_that_are_fewer_than_before_do_not_replace_what_was_trained(image_folder: Path, tmp_path: Path) -> None:
    settings = tiny(image_folder, tmp_path / "run", optim={"epochs": 1})
    pretrain(**settings)
    write_images(tmp_path / "fewer", 32)
    with pytest.raises(UserError, match=r"the images of data\.train: 48 -> 32"):
        pretrain(**{**settings, "data": {**settings["data"], "train": tmp_path / "fewer"}})

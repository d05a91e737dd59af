"""Runs of two processes: rows, losses and statistics of each, stopped together and continued by two or by one."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mgd_ssl import Interrupted, UserError, pretrain
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from tests.ranks import on_ranks, settings_of_pair
from tests.runs import (
    assert_same_end,
    checkpoint,
    rows,
    steps_saved,
    stop_after,
    tiny,
)

# whole runs of two processes


def run_and_stop(settings: dict[str, Any], stop_on: int, step: int) -> str:
    """Pretrain until one rank receives a signal; the message of the interruption."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if int(os.environ["RANK"]) == stop_on:
            stop_after(monkeypatch, step)
        with pytest.raises(Interrupted) as stopped:
            pretrain(**settings)
    return str(stopped.value)


def watched_steps(settings: dict[str, Any]) -> dict[str, Any]:
    """Pretrain; this rank's losses, and running means of a BatchNorm: before a step, of its batch, after it."""
    losses: list[list[float]] = []
    means: list[list[Tensor]] = []
    update = Update.__call__

    def watched(self: Update, inputs: Any, finished: int) -> StepOutput:
        norm = self.module.get_submodule("moco.encoder_q.bn1")
        running = norm.get_buffer("running_mean")
        means.append([running.clone()])
        hook = norm.register_forward_pre_hook(lambda module, inputs: means[-1].append(inputs[0].mean(dim=(0, 2, 3))))
        step = update(self, inputs, finished)
        hook.remove()
        means[-1].append(running.clone())
        told = (step.total, step.losses["contrastive"], step.losses["mgd"], step.shown["accuracy"])
        losses.append([value.item() for value in told])
        return step

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Update, "__call__", watched)
        pretrain(**settings)
    return {"losses": losses, "means": means}


def several_runs(images: Path, folder: Path, teacher: Path) -> dict[str, Any]:
    """Runs one after the other in one pair of processes, each with a process group of its own."""

    def next_port() -> None:
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)

    knn = {"train": images / "train", "val": images / "val", "every_epochs": 1, "k": 3}
    common = {"teacher": teacher, "knn": knn}
    seen = watched_steps(tiny(images, folder / "whole", **common))
    next_port()
    told = run_and_stop(tiny(images, folder / "stopped", **common), stop_on=1, step=4)
    next_port()
    missing = tiny(images, folder / "missing")
    missing["data"]["train"] = folder / "nowhere"
    try:
        pretrain(**missing)
    except UserError as error:
        return {"told": told, "missing": str(error), **seen}
    return {}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, teacher_file: Path) -> tuple[Path, list[Any]]:
    """Folder of the runs of two processes, and what each rank was told."""
    folder = tmp_path_factory.mktemp("pair")
    return folder, on_ranks(2, folder / "ranks", several_runs, image_folder, folder, teacher_file)


def test_two_processes_write_every_row_once(pair: tuple[Path, list[Any]]) -> None:
    told = [(row["kind"], row["step"]) for row in rows(pair[0] / "whole")]
    knn = [("knn", step) for step in (0, 3, 6, 9)]
    assert sorted(told) == sorted([("matching", 0), ("matching", 3), *knn, *(("train", s) for s in (2, 4, 6, 8, 9))])


def test_logged_losses_are_averaged_over_the_ranks(pair: tuple[Path, list[Any]]) -> None:
    each = torch.tensor([one["losses"] for one in pair[1]], dtype=torch.float64)  # [ranks, steps, terms]
    assert (each[0] - each[1]).abs()[:, :3].min() > 0
    train = [row for row in rows(pair[0] / "whole") if row["kind"] == "train"]
    for row, steps in zip(train, ([0, 1], [2, 3], [4, 5], [6, 7], [8]), strict=True):
        found = [row[name] for name in ("loss", "contrastive", "mgd", "accuracy")]
        assert found == pytest.approx(each[:, steps].mean(dim=(0, 1)).tolist(), rel=1e-6)


def test_batchnorm_statistics_of_a_rank_are_its_own(pair: tuple[Path, list[Any]]) -> None:
    for one in pair[1]:
        for step, (before, batch, after) in enumerate(one["means"]):
            torch.testing.assert_close(after, 0.9 * before + 0.1 * batch, rtol=1e-5, atol=1e-6)
            if step % 3:  # an epoch starts with matching and k-NN, which take the statistics of rank 0
                assert torch.equal(before, one["means"][step - 1][2])
    assert not torch.equal(pair[1][0]["means"][1][0], pair[1][1]["means"][1][0])


def test_signal_to_one_rank_stops_all_after_one_step(pair: tuple[Path, list[Any]]) -> None:
    folder, ranks = pair
    step = steps_saved(folder / "stopped")[-1]
    assert 4 <= step <= 6
    assert all(f"after step {step}: the same command continues" in one["told"] for one in ranks)


def test_error_that_only_rank_zero_sees_is_raised_on_all(pair: tuple[Path, list[Any]]) -> None:
    assert all("nowhere is not there: pass a folder of images" in one["missing"] for one in pair[1])


def continue_run(settings: dict[str, Any]) -> None:
    pretrain(**settings)


def test_two_processes_continue_and_end_like_an_uninterrupted_run(
    pair: tuple[Path, list[Any]], image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(pair[0] / "stopped", tmp_path / "run")
    on_ranks(2, tmp_path / "ranks", continue_run, settings_of_pair(image_folder, tmp_path / "run", teacher_file))
    assert_same_end(tmp_path / "run", pair[0] / "whole")


def test_one_process_continues_a_run_of_two(
    pair: tuple[Path, list[Any]], image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(pair[0] / "stopped", tmp_path / "run")
    pretrain(**settings_of_pair(image_folder, tmp_path / "run", teacher_file))
    assert checkpoint(tmp_path / "run", 9)["step"] == 9
    assert [row["step"] for row in rows(tmp_path / "run") if row["kind"] == "train"] == [2, 4, 6, 8, 9]

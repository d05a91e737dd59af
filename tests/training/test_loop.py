"""The training loop: what it trains, what it leaves alone, and how it stops."""

import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mgd_ssl import TrainingError, UserError, pretrain
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.run.log import RunLog, logger
from mgd_ssl.run.runtime import cores
from mgd_ssl.training.loop import Pace, Record
from tests.runs import rows, stepper_for, tiny
from tests.training.loops import one_epoch, train_rows


def fingerprint(network: nn.Module) -> str:
    """Hash of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


# gradients and state


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
def test_gradients_reach_all_of_the_student_and_nothing_else(
    guided: bool, image_folder: Path, tmp_path: Path, teacher_file: Path
) -> None:
    settings = tiny(image_folder, tmp_path / "run", teacher=teacher_file if guided else None)
    stepper, [batch] = stepper_for(settings, 1)
    stepper.module(*stepper.task.inputs(batch, 0)).total.backward()
    trained = [*stepper.module.moco.encoder_q.parameters()]
    if guided:
        trained += stepper.module.guide.parameters()
        assert len(list(stepper.module.guide.parameters())) == 8  # weight and bias of a norm for each stage
    without = [p.shape for p in trained if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert all(p.grad is None for p in stepper.module.moco.encoder_k.parameters())
    if stepper.teacher is not None:
        assert all(p.grad is None and not p.requires_grad for p in stepper.teacher.parameters())
    optimized = {id(p) for group in stepper.update.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in trained}


def test_step_changes_the_student_and_not_the_teacher(image_folder: Path, tmp_path: Path, teacher_file: Path) -> None:
    stepper, seen = stepper_for(tiny(image_folder, tmp_path / "run", teacher=teacher_file), 3)
    assert stepper.teacher is not None
    teacher, student = fingerprint(stepper.teacher), fingerprint(stepper.module.moco.encoder_q)
    for batch in seen:
        stepper.step(batch)
    assert fingerprint(stepper.teacher) == teacher
    assert fingerprint(stepper.module.moco.encoder_q) != student
    assert not any(module.training for module in stepper.teacher.backbone.modules())
    assert int(stepper.module.moco.queue_ptr) == 3 * 16 % 64


def test_loss_falls_when_one_batch_is_seen_again_and_again(
    image_folder: Path, tmp_path: Path, teacher_file: Path
) -> None:
    settings = tiny(image_folder, tmp_path / "run", teacher=teacher_file, moco={"momentum": 0.9}, mgd={"weight": 1e-3})
    stepper, [batch] = stepper_for(settings, 1)
    stepper.update.learning_rate = lambda step: 0.02
    moco = stepper.module.moco
    queue = moco.queue.clone()
    seen = []
    for _ in range(15):
        seen.append(stepper.step(batch))
        moco.queue.copy_(queue)  # the batch's own keys as negatives would keep the contrastive loss up
    assert seen[-1].losses["mgd"] < 0.9 * seen[0].losses["mgd"]
    assert seen[-1].total < 0.9 * seen[0].total


def test_momentum_survives_a_first_step_that_the_scaler_skips(image_folder: Path, tmp_path: Path) -> None:
    settings = one_epoch(image_folder, tmp_path / "run", runtime={"log_every": 1, "precision": "float16"})
    stepper, [batch] = stepper_for(settings, 1)
    stepper.update.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)  # the first gradients overflow
    before = fingerprint(stepper.module.moco.encoder_q.get_submodule("fc"))
    stepper.step(batch)
    assert fingerprint(stepper.module.moco.encoder_q.get_submodule("fc")) == before
    assert stepper.update.scaler.get_scale() == 2.0**119
    buffers = [state["momentum_buffer"] for state in stepper.update.optimizer.state.values()]
    assert buffers and all((buffer == 0).all() for buffer in buffers)


# what a run tells and leaves


def test_rows_have_the_documented_keys(image_folder: Path, tmp_path: Path, teacher_file: Path) -> None:
    pretrain(**one_epoch(image_folder, tmp_path / "run", teacher=teacher_file))
    parsed = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    matching, *train = parsed
    stages = {f"stage{i}_{key}" for i in range(1, 5) for key in ("cost_before", "cost_after", "changed")}
    assert matching.keys() == {"kind", "step", "epoch", "seconds"} | stages
    terms = {"loss", "contrastive", "mgd", "accuracy", "lr", "images_per_second", "data_wait"}
    assert [row["step"] for row in train] == [1, 2, 3]
    for row in train:
        assert row.keys() == {"kind", "step", "epoch"} | terms
        assert row["loss"] == pytest.approx(row["contrastive"] + row["mgd"], rel=1e-5)
        assert row["epoch"] == row["step"] / 3


@pytest.mark.parametrize(("chosen", "after"), [((), [0]), ((1, 2), [0, 1, 2]), (None, [0, 1, 2])])
def test_matching_is_updated_before_training_and_after_the_chosen_epochs(
    chosen: tuple[int, ...] | None, after: list[int], image_folder: Path, tmp_path: Path, teacher_file: Path
) -> None:
    pretrain(**tiny(image_folder, tmp_path / "run", teacher=teacher_file, mgd={"matching_epochs": chosen}))
    assert [row["epoch"] for row in rows(tmp_path / "run") if row["kind"] == "matching"] == after


def test_row_is_the_average_of_the_steps_since_the_row_before(image_folder: Path, tmp_path: Path) -> None:
    for name, every in (("each", 1), ("pairs", 2)):
        pretrain(**one_epoch(image_folder, tmp_path / name, runtime={"log_every": every}))
    each, pairs = train_rows(tmp_path / "each"), train_rows(tmp_path / "pairs")
    assert [row["step"] for row in pairs] == [2, 3]
    assert pairs[0]["loss"] == pytest.approx((each[0]["loss"] + each[1]["loss"]) / 2)
    assert pairs[1]["loss"] == each[2]["loss"]


def test_encoder_loads_strictly_into_the_backbone(image_folder: Path, tmp_path: Path) -> None:
    result = pretrain(**one_epoch(image_folder, tmp_path / "run"))
    weights = torch.load(result.encoder, weights_only=True)
    backbone = build_backbone("thin_resnet10")
    backbone.fc = nn.Identity()
    backbone.load_state_dict(weights, strict=True)
    state = torch.load(tmp_path / "run" / "checkpoints" / "step_00000003.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[f"module.encoder_q.{name}"]) for name, value in weights.items())
    assert all(value.is_contiguous() for value in weights.values())


# what does not fit


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"optim": {"batch_size": 64}},
            r"holds 48 images, fewer than optim\.batch_size 64: add images or lower the batch size",
        ),
        (
            {"moco": {"queue_size": 100}},
            r"moco\.queue_size 100 is not a multiple of optim\.batch_size 16: set it to 96, say",
        ),
        (
            {"moco": {"queue_size": 4}},
            r"moco\.queue_size 4 is not a multiple of optim\.batch_size 16: set it to 16, say",
        ),
        ({"student": "thin_resnet11"}, r"unknown architecture 'thin_resnet11', did you mean 'thin_resnet1\d'\?"),
        ({"data": {"image_size": 16}}, "the maps of stage 4 are 1 x 1 at data.image_size 16.*choose larger images"),
        (
            {"student": "resnet18", "data": {"image_size": 64}},
            r"in stage 1 \(16 x 16 and 32 x 32; in the teacher .* has 16 x 16\).*choose networks whose strides agree",
        ),
    ],
    ids=["few images", "queue", "small queue", "student", "1 x 1", "strides"],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], told: str, image_folder: Path, tmp_path: Path, teacher_file: Path
) -> None:
    with pytest.raises(UserError, match=told):
        pretrain(**tiny(image_folder, tmp_path / "run", teacher=teacher_file, **changes))
    assert not (tmp_path / "run").exists()


def test_teacher_thinner_than_the_student_is_refused(image_folder: Path, tmp_path: Path) -> None:
    thin = pretrain(**one_epoch(image_folder, tmp_path / "thin")).encoder
    with pytest.raises(UserError, match=r"thin_resnet14 cannot learn from .*only 16 teacher channels: choose a wider"):
        pretrain(**tiny(image_folder, tmp_path / "run", student="thin_resnet14", teacher=thin))


def test_weights_that_are_not_finite_are_never_saved(image_folder: Path, tmp_path: Path) -> None:
    stepper, [batch] = stepper_for(one_epoch(image_folder, tmp_path / "run"), 1)
    stepper.step(batch)  # its loss is finite
    with torch.no_grad():
        next(stepper.module.moco.encoder_q.parameters())[0, 0, 0, 0] = float("inf")  # as an exploding update leaves it
    record = Record(stepper.session, Pace(16, 3, 10, 10), [])
    with pytest.raises(TrainingError, match="weights after step 1"):
        record.save(stepper.task, stepper.update)
    assert not (tmp_path / "run" / "checkpoints").exists()


# cores


def test_a_launcher_may_say_how_many_cores_a_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGD_SSL_CORES", "5")
    assert cores(4) == 5
    monkeypatch.delenv("MGD_SSL_CORES")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    assert [cores(count) for count in (1, 4, 5, 100)] == [12, 3, 2, 1]


# messages


class Closed(io.StringIO):
    """A terminal or a pipe nobody reads any more."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError()])
def test_messages_that_nobody_reads_do_not_end_the_training(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "dup2", lambda *descriptors: None)  # rich puts the null device in place of a closed stdout
    monkeypatch.setattr(sys, "stderr", Closed(error))
    with RunLog(tmp_path, 3, 0):
        logger.info("one")
        logger.info("two")
    assert [line[-3:] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["one", "two"]

"""The training loop: what it trains, what it leaves alone, and how it stops."""

import hashlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from mgd_ssl import TrainingError, UserError, pretrain
from mgd_ssl.cli import main
from mgd_ssl.data.samples import Backend
from mgd_ssl.distillation.guide import Guide
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.run.log import RunLog, logger
from mgd_ssl.run.runtime import cores
from mgd_ssl.tasks.moco import GuidedMoCo
from mgd_ssl.training.loop import Pace, Record
from mgd_ssl.training.update import Update
from moco import MoCo
from tests.runs import flags, rows, stepper_for, steps_saved, tiny, trained_teacher


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    return trained_teacher(tmp_path_factory.getbasetemp(), image_folder)


def plain(moco: MoCo) -> GuidedMoCo:
    """Without a teacher."""
    return GuidedMoCo(moco, Guide(moco.encoder_q))


def fingerprint(network: nn.Module) -> str:
    """Hash of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def train_rows(run: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run) if row["kind"] == "train"]


def assert_finite(run: Path, num_rows: int = 3) -> None:
    parsed = train_rows(run)
    assert len(parsed) == num_rows
    assert all(math.isfinite(row[key]) for row in parsed for key in ("loss", "contrastive", "mgd"))


ONE_EPOCH = {"optim": {"epochs": 1}, "runtime": {"log_every": 1}}


def one_epoch(images: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Settings of three steps that are all logged."""
    merged = dict(changes)
    for group, values in ONE_EPOCH.items():
        merged[group] = {**values, **changes.get(group, {})}
    return tiny(images, out, **merged)


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


@pytest.mark.parametrize(
    "changes",
    [
        *({"mgd": {"reducer": name}} for name in ("amp", "max", "mean", "random_drop", "sparse")),
        *({"mgd": {"margin": name}} for name in ("measured", "initial")),
        *({"runtime": {"precision": name}} for name in ("bfloat16", "float16")),
        {"runtime": {"channels_last": False}},
        {"data": {"recipe": "v1"}, "optim": {"lr_schedule": "epoch"}},
    ],
    ids=str,
)
def test_losses_are_finite_with(
    changes: dict[str, Any], image_folder: Path, tmp_path: Path, teacher_file: Path
) -> None:
    pretrain(**one_epoch(image_folder, tmp_path / "run", teacher=teacher_file, **changes))
    assert_finite(tmp_path / "run")


def test_backends_of_the_views_give_nearly_the_same_losses(image_folder: Path, tmp_path: Path) -> None:
    losses = {}
    for backend in get_args(Backend):
        pretrain(**one_epoch(image_folder, tmp_path / backend, data={"backend": backend}))
        losses[backend] = [row["loss"] for row in train_rows(tmp_path / backend)]
    assert losses["cpu"] == pytest.approx(losses["reference"], rel=0.02)
    assert losses["device"] == pytest.approx(losses["reference"], rel=0.005)


def test_memory_format_does_not_change_the_losses(image_folder: Path, tmp_path: Path) -> None:
    for name, flag in (("last", True), ("first", False)):
        pretrain(**one_epoch(image_folder, tmp_path / name, runtime={"channels_last": flag}))
    pairs = zip(train_rows(tmp_path / "last"), train_rows(tmp_path / "first"), strict=True)
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-4) for a, b in pairs)


def test_compiled_networks_give_the_losses_of_eager_ones(
    image_folder: Path, tmp_path: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"epochs": 1, "batch_size": 24, "lr": 1e-3}
    # inductor takes a minute for these networks on one core: everything up to it is the same with this backend
    for module in (nn.Module, MGD):
        monkeypatch.setattr(module, "compile", partialmethod(module.compile, backend="aot_eager"))
    for name, flag in (("eager", False), ("compiled", True)):
        settings = one_epoch(
            image_folder,
            tmp_path / name,
            teacher=teacher_file,
            optim=steps,
            moco={"queue_size": 24},
            runtime={"compile": flag},
        )
        pretrain(**settings)
    pairs = list(zip(train_rows(tmp_path / "eager"), train_rows(tmp_path / "compiled"), strict=True))
    assert len(pairs) == 2
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-4) for a, b in pairs)
    torch._dynamo.reset()


# stopping


@contextmanager
def poisoned(step: int) -> Any:
    """Have a weight become NaN before a step, counted from 0."""
    update: Callable[..., Any] = Update.__call__

    def with_poison(self: Update, inputs: Any, finished: int) -> Any:
        if finished == step:
            weight: Tensor = next(self.module.parameters())
            weight.data[0] = math.nan
        return update(self, inputs, finished)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Update, "__call__", with_poison)
        yield


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    image_folder: Path, tmp_path: Path
) -> None:
    settings = tiny(image_folder, tmp_path / "run", runtime={"log_every": 100}, checkpoint={"every_steps": 1})
    with poisoned(4), pytest.raises(TrainingError, match=r"the loss of step 4 is not finite.*lower optim\.lr"):
        pretrain(**settings)
    assert steps_saved(tmp_path / "run")[-1] == 4
    newest = tmp_path / "run" / "checkpoints" / "step_00000004.pt"
    weights = torch.load(newest, weights_only=True)["state_dict"]
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert not (tmp_path / "run" / "encoder.pt").exists()
    pretrain(**settings)  # the state is good: without the poison it goes on
    assert steps_saved(tmp_path / "run")[-1] == 9


def test_command_ends_with_3_when_the_learning_rate_explodes(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny(image_folder, tmp_path / "run", optim={"lr": 1e6, "warmup_epochs": 0})
    assert main(["pretrain", *flags(settings)]) == 3
    told = capsys.readouterr().err
    assert re.search("mgd-ssl: the (loss of|weights after) step", told) and "Traceback" not in told


# accuracy


class Constant(nn.Module):
    """A collapsed encoder: one vector, whatever it is shown."""

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(dim, generator=torch.Generator().manual_seed(seed)))

    def forward(self, images: Tensor) -> Tensor:
        return self.vector.expand(len(images), -1)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [1, 16, 128, 1000])
def test_a_collapsed_encoder_is_never_accurate(precision: torch.dtype, dim: int) -> None:
    images = torch.zeros(8, 3, 4, 4)
    for seed in range(20):
        method = plain(MoCo(Constant(dim, seed), dim, 64, temperature=0.07))
        for _ in range(9):  # its keys fill the queue
            with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
                losses = method(images, images, {})
            method.moco.enqueue(losses.carried)
        assert losses.shown["accuracy"].item() == 0


def test_accuracy_counts_queries_that_are_strictly_nearer_to_their_key() -> None:
    method = plain(MoCo(nn.Identity(), 8, 24, temperature=0.2))
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(200, 25, generator=generator) * 2 - 1
    cosines[::3, 0] = cosines[::3, 1:].amax(dim=1)  # ties
    cosines[1::3, 0] = cosines[1::3, 1:].amax(dim=1) + 1e-4
    wanted = [all(row[0] > other for other in row[1:]) for row in cosines.tolist()]
    assert method.nearer(cosines / 0.2).tolist() == wanted
    assert 0.3 < sum(wanted) / 200 < 0.4


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

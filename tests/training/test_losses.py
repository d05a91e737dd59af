"""Losses: finite whatever the settings, alike in every layout and compiled; what is not finite stops the run."""

import math
import re
from collections.abc import Callable
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from mgd_ssl import TrainingError, pretrain
from mgd_ssl.cli import main
from mgd_ssl.data.samples import Backend
from mgd_ssl.distillation.guide import Guide
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.tasks.moco import GuidedMoCo
from mgd_ssl.training.update import Update
from moco import MoCo
from tests.runs import flags, steps_saved, tiny
from tests.training.loops import one_epoch, train_rows


def plain(moco: MoCo) -> GuidedMoCo:
    """Without a teacher."""
    return GuidedMoCo(moco, Guide(moco.encoder_q))


def assert_finite(run: Path, num_rows: int = 3) -> None:
    parsed = train_rows(run)
    assert len(parsed) == num_rows
    assert all(math.isfinite(row[key]) for row in parsed for key in ("loss", "contrastive", "mgd"))


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

"""What the trainer's steps do, told from outside: pixels, seeds, modes, and what a step leaves behind."""

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchvision.models import ResNet50_Weights
from torchvision.transforms.v2 import functional as TF

from mgd_ssl import pretrain
from mgd_ssl.data.samples import PretrainBatch
from mgd_ssl.data.upload import Upload
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.tasks.pretraining import Pretraining
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from moco import MoCo
from tests.runs import stepper_for, tiny


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_pixels_are_normalised_as_torchvisions_networks_expect_them(layout: torch.memory_format) -> None:
    preset = ResNet50_Weights.IMAGENET1K_V2.transforms()
    pixels = torch.randint(256, (3, 7, 5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    plain = TF.to_dtype(pixels.permute(0, 3, 1, 2), torch.float32, scale=True)
    expected = TF.normalize(plain, mean=preset.mean, std=preset.std)
    found = Upload(Runtime(torch.device("cpu"), None, layout, 1)).images(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found.is_contiguous(memory_format=layout)


def watched_run(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What was noted of every step of a run."""
    steps: list[dict[str, Any]] = []
    ask, update = Pretraining.inputs, Update.__call__
    encode_keys, forward, teach = MoCo.encode_keys, MoCo.forward, Teacher.watched

    def asking(self: Pretraining, batch: PretrainBatch, finished: int) -> tuple[Any, ...]:
        steps.append({"mode": self.module.training, "queries": self.upload.views(batch)[0], "taught": []})
        return ask(self, batch, finished)

    def step(self: Update, inputs: Any, finished: int) -> StepOutput:
        output = update(self, inputs, finished)
        steps[-1]["keys"] = output.carried
        steps[-1]["left"] = [p for p in self.module.parameters() if p.grad is not None]
        return output

    def encoding(self: MoCo, im_k: Tensor, shuffle_seed: int) -> Tensor:
        steps[-1] |= {"shuffle": shuffle_seed, "im_k": im_k}
        return encode_keys(self, im_k, shuffle_seed)

    def contrasting(self: MoCo, im_q: Tensor, im_k: Tensor, shuffle_seed: int = 0) -> Any:
        steps[-1] |= {"im_q": im_q, "queue": self.queue.clone()}
        return forward(self, im_q, im_k, shuffle_seed)

    def teaching(self: Teacher, images: Tensor) -> Any:
        if steps:
            steps[-1]["taught"].append(images)
        return teach(self, images)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Pretraining, "inputs", asking)
        monkeypatch.setattr(Update, "__call__", step)
        monkeypatch.setattr(MoCo, "encode_keys", encoding)
        monkeypatch.setattr(MoCo, "forward", contrasting)
        monkeypatch.setattr(Teacher, "watched", teaching)
        pretrain(**settings)
    return steps


def test_every_step_shuffles_otherwise_and_shows_the_teacher_the_query_views(
    image_folder: Path, tmp_path: Path, teacher_file: Path
) -> None:
    settings = tiny(image_folder, tmp_path / "run", teacher=teacher_file, mgd={"matching_epochs": (5,)})
    steps = watched_run(settings)
    assert len(steps) == 9 and all(step["mode"] for step in steps)
    assert len({step["shuffle"] for step in steps}) == 9
    for step in steps:
        assert [torch.equal(images, step["queries"]) for images in step["taught"]] == [True]
        assert torch.equal(step["im_q"], step["queries"]) and not torch.equal(step["im_k"], step["queries"])
        assert step["left"] == []  # gradients are gone before the next step
    for number, (step, after) in enumerate(pairwise(steps)):
        columns = slice(16 * number % 64, 16 * number % 64 + 16)
        assert torch.equal(after["queue"][:, columns], step["keys"].T)
    other = watched_run({**settings, "out": tmp_path / "other", "seed": 1, "teacher": None})
    assert not {step["shuffle"] for step in steps} & {step["shuffle"] for step in other}


def test_random_drop_draws_anew_in_every_step(image_folder: Path, tmp_path: Path, teacher_file: Path) -> None:
    settings = tiny(image_folder, tmp_path / "run", teacher=teacher_file, mgd={"reducer": "random_drop"})
    stepper, [batch] = stepper_for(settings, 1)

    def drawn(step: int) -> list[Tensor]:
        targets = stepper.task.inputs(batch, step)[2]
        return [target.map.clone() for target in targets["mgd"]]

    first = drawn(0)
    assert all(torch.equal(*pair) for pair in zip(first, drawn(0), strict=True))  # so that a resumed step is the same
    for step in (1, 2, 7):
        assert not any(torch.equal(*pair) for pair in zip(first, drawn(step), strict=True))


def test_update_is_sgd_with_momentum_and_weight_decay_written_out(image_folder: Path, tmp_path: Path) -> None:
    """Of every parameter: v = 0.9 v + g + decay w, w = w - lr v, with the learning rate of the step."""
    changes = {"lr": 0.05, "weight_decay": 0.01, "warmup_epochs": 0, "epochs": 1}
    before: list[Tensor] = []
    velocity: list[Tensor] = []
    compared: list[int] = []

    def update(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = optimizer.param_groups[0]["params"]
        step = len(compared)
        if before:
            for parameter, expected in zip(parameters, before, strict=True):
                torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)
        lr = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 3))
        old = velocity or [torch.zeros_like(parameter) for parameter in parameters]
        velocity[:] = [
            0.9 * v + parameter.grad + 0.01 * parameter.detach() for v, parameter in zip(old, parameters, strict=True)
        ]
        before[:] = [parameter.detach() - lr * v for parameter, v in zip(parameters, velocity, strict=True)]
        compared.append(step)

    handle = register_optimizer_step_pre_hook(update)
    try:
        pretrain(**tiny(image_folder, tmp_path / "run", optim=changes))
    finally:
        handle.remove()
    assert compared == [0, 1, 2]
    weights = torch.load(tmp_path / "run" / "encoder.pt", weights_only=True)
    torch.testing.assert_close(weights["conv1.weight"], before[0], rtol=1e-5, atol=1e-7)


def test_teacher_stays_in_evaluation_mode_whatever_is_asked(teacher_file: Path) -> None:
    teacher = Teacher.load(teacher_file)
    buffers = copy.deepcopy(dict(teacher.named_buffers()))
    teacher.train()
    nn.Sequential(teacher).train()
    teacher(torch.randn(4, 3, 32, 32))
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, buffers[name]) for name, value in teacher.named_buffers())

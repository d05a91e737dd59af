"""A teacher from a file: frozen, its maps before the ReLU, its margins from its norms."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mgd_ssl.mgd.margin import relu_margin
from mgd_ssl.networks.backbones import build_backbone, stage_taps
from mgd_ssl.networks.teacher import Teacher
from tests.networks.saved import State, randomised, save


@pytest.fixture
def teacher(tmp_path: Path, thin: State) -> Teacher:
    return Teacher.load(save(tmp_path, thin))


def test_teacher_stays_in_eval_mode_without_gradient(teacher: Teacher) -> None:
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    assert not any(module.training for module in teacher.modules())
    assert teacher.train() is teacher
    assert not any(module.training for module in teacher.modules())
    maps = teacher(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert not any(each.requires_grad for each in maps)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_teacher_maps_are_those_before_the_relu(teacher: Teacher) -> None:
    outputs: list[Tensor] = []
    for name in ("layer1", "layer2", "layer3", "layer4"):
        stage = teacher.backbone.get_submodule(name)
        stage.register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
    maps = teacher(torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)))
    assert [tuple(each.shape) for each in maps] == [
        (2, 16, 24, 24), (2, 32, 12, 12), (2, 64, 6, 6), (2, 128, 3, 3)
    ]  # fmt: skip
    for before, after in zip(maps, outputs, strict=True):
        assert before.min() < 0
        assert torch.equal(before.relu(), after)


@pytest.mark.parametrize(("arch", "norm"), [("thin_resnet10", "bn2"), ("thin_resnet14", "bn3")])
def test_teacher_margins_come_from_the_last_norm_of_each_stage(tmp_path: Path, arch: str, norm: str) -> None:
    state = randomised(build_backbone(arch), seed=1).state_dict()
    teacher = Teacher.load(save(tmp_path, state))
    margins = teacher.margins()
    assert [len(margin) for margin in margins] == teacher.channels == [s.channels for s in stage_taps(teacher.backbone)]
    for stage, margin in enumerate(margins, start=1):
        weight, bias = state[f"layer{stage}.0.{norm}.weight"], state[f"layer{stage}.0.{norm}.bias"]
        assert torch.equal(margin, relu_margin(weight, bias))
        assert (margin < 0).all()

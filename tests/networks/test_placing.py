"""Where networks lie in memory, and that it changes none of their numbers."""

import copy
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.placing import placed

CPU = torch.device("cpu")
LAST = torch.channels_last


@pytest.fixture
def plain() -> ResNet:
    torch.manual_seed(0)
    return cast(ResNet, build_backbone("resnet18"))


def gradients(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    network(images).square().mean().backward()
    return {name: cast(Tensor, weight.grad) for name, weight in network.named_parameters()}


def test_placing_changes_no_number(plain: ResNet) -> None:
    network = placed(copy.deepcopy(plain), CPU, LAST)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = gradients(plain, images)
    found = gradients(network, images.contiguous(memory_format=LAST))
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_the_last_stage_alone_is_plain_on_a_cpu(plain: ResNet) -> None:
    network = placed(nn.ModuleDict({"query": plain}), CPU, LAST)  # also within another module
    stages = cast(ResNet, network["query"])  # type: ignore[index]
    assert stages.layer3[0].conv2.weight.is_contiguous(memory_format=LAST)
    assert stages.layer4[0].conv2.weight.is_contiguous()
    entered: dict[str, Tensor] = {}
    for name in ("layer3", "layer4"):
        first = getattr(stages, name)[0].conv1
        first.register_forward_pre_hook(lambda module, args, name=name: entered.update({name: args[0]}))
    stages(torch.randn(2, 3, 64, 64).contiguous(memory_format=LAST))
    assert entered["layer3"].is_contiguous(memory_format=LAST) and not entered["layer3"].is_contiguous()
    assert entered["layer4"].is_contiguous()


def test_placing_again_changes_nothing(plain: ResNet) -> None:
    placed(placed(plain, CPU, LAST), CPU, LAST)
    assert len(plain.layer4._forward_pre_hooks) == 1
    assert plain.layer4[0].conv2.weight.is_contiguous()


def test_other_devices_and_networks_are_of_one_format() -> None:
    elsewhere = placed(build_backbone("thin_resnet10"), torch.device("meta"), LAST)
    assert not cast(ResNet, elsewhere).layer4._forward_pre_hooks
    network = placed(build_backbone("mobilenet_v2"), CPU, LAST)
    kernels = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=LAST) for weight in kernels)

"""Taps read what goes into a ReLU, and change nothing else."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from mgd_ssl.networks.backbones import build_backbone, build_encoder, stage_taps, trunk
from mgd_ssl.networks.taps import FeatureTaps, HeadTap

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=7),
    "thin_resnet14": lambda: build_backbone("thin_resnet14"),
}


def network_and_input(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return NETWORKS[name](), torch.randn(2, 3, 64, 64)


def names(network: nn.Module) -> list[str]:
    return [stage.relu for stage in stage_taps(network)]


def stage_outputs(network: nn.Module) -> list[Tensor]:
    outputs: list[Tensor] = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(stage).register_forward_hook(
            lambda module, inputs, output: outputs.append(output.clone())
        )
    return outputs


@pytest.mark.parametrize("name", NETWORKS)
def test_taps_read_the_sum_before_the_last_relu(name: str) -> None:
    network, images = network_and_input(name)
    taps = FeatureTaps(network, names(network))
    outputs = stage_outputs(network)
    with taps.record() as maps:
        network(images)
    assert len(maps) == len(outputs) == 4
    for before, after in zip(maps, outputs, strict=True):
        assert before.min() < 0
        assert torch.equal(before.relu(), after)


@pytest.mark.parametrize("name", NETWORKS)
def test_tapped_network_computes_and_saves_the_same(name: str) -> None:
    network, images = network_and_input(name)
    untouched = copy.deepcopy(network)
    taps = FeatureTaps(network, names(network))
    with taps.record():
        output = network(images)
    expected = untouched(images)
    assert torch.equal(output, expected)
    assert list(network.state_dict()) == list(untouched.state_dict())
    output.sum().backward()
    expected.sum().backward()
    for tapped, plain in zip(network.parameters(), untouched.parameters(), strict=True):
        assert tapped.grad is not None and plain.grad is not None
        assert torch.equal(tapped.grad, plain.grad)


def test_a_copy_made_before_tapping_is_never_recorded() -> None:
    network, images = network_and_input("thin_resnet14")
    other = copy.deepcopy(network)
    taps = FeatureTaps(network, names(network))
    with taps.record() as maps:
        network(images)
        other(images * 3)
    with taps.record() as alone:
        network(images)
    assert all(torch.equal(one, two) for one, two in zip(maps, alone, strict=True))
    with pytest.raises(RuntimeError, match="no forward pass"), taps.record():
        other(images)


def test_gradient_flows_through_every_tap() -> None:
    network, images = network_and_input("thin_resnet14")
    taps = FeatureTaps(network, names(network))
    with taps.record() as maps:
        network(images)
    for stage, each in enumerate(maps, start=1):
        for name in ("conv1.weight", f"layer{stage}.0.conv1.weight"):
            parameter = network.get_parameter(name)
            (gradient,) = torch.autograd.grad(each.square().sum(), parameter, retain_graph=True)
            assert gradient.abs().sum() > 0


def test_maps_come_in_the_order_of_the_names() -> None:
    network, images = network_and_input("thin_resnet14")
    taps = FeatureTaps(network, ["layer4.0.relu", "layer2.0.relu"])
    with taps.record() as maps:
        network(images)
    assert [each.shape[1] for each in maps] == [512, 128]


def test_nothing_is_kept_outside_the_block() -> None:
    network, images = network_and_input("thin_resnet14")
    taps = FeatureTaps(network, names(network))
    network(images)
    with pytest.raises(RuntimeError), taps.record():
        pass
    with taps.record() as maps:
        network(images)
    kept = [each.clone() for each in maps]
    network(images * 2)
    assert all(torch.equal(one, two) for one, two in zip(maps, kept, strict=True))


def test_an_error_inside_the_block_leaves_the_taps_usable() -> None:
    network, images = network_and_input("thin_resnet14")
    taps = FeatureTaps(network, names(network))
    with pytest.raises(RuntimeError, match="to have 3 channels"), taps.record():
        network(images), network(images[:, :2])
    with pytest.raises(RuntimeError, match=r"layer1.0.relu, layer2.0.relu"), taps.record():
        pass


def test_unknown_name_lists_the_relus() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Sequential(nn.ReLU(inplace=True)))
    with pytest.raises(ValueError, match=r"'layer9.relu' is no module of this network: its ReLUs are 1, 2.0"):
        FeatureTaps(network, ["layer9.relu"])
    with pytest.raises(ValueError, match="its ReLUs are none"):
        FeatureTaps(nn.Linear(1, 1), ["relu"])


def test_a_tapped_module_that_is_not_called_is_an_error() -> None:
    network = nn.ModuleDict({"used": nn.ReLU(), "idle": nn.ReLU()})
    taps = FeatureTaps(network, ["used", "idle"])
    with pytest.raises(RuntimeError, match="no forward pass went through idle"), taps.record():
        network["used"](torch.zeros(1))


def test_compiled_network_gives_the_same_maps_and_gradients() -> None:
    torch._dynamo.reset()  # of what other tests have compiled
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    eager = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), BasicBlock(4, 4))
    compiled = copy.deepcopy(eager)
    results = []
    for network, forward in ((eager, eager), (compiled, torch.compile(compiled, fullgraph=True))):
        taps = FeatureTaps(network, ["1.relu"])
        with taps.record() as maps:
            output = forward(images)
        (output.sum() + maps[0].square().mean()).backward()
        results.append([output, maps[0], *(parameter.grad for parameter in network.parameters())])
    torch._dynamo.reset()
    for one, two in zip(*results, strict=True):
        assert one is not None and two is not None
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    assert torch.equal(results[1][1].relu(), results[1][0])


def test_head_is_read_of_a_compiled_network_too() -> None:
    network = build_encoder("thin_resnet10", 6).eval()
    tap, pixels = HeadTap(network, "fc"), torch.randn(3, 3, 32, 32)
    plain = nn.Sequential(trunk(network))(pixels)
    with tap.record() as passed:
        assert network(pixels) is passed[1]
    assert torch.equal(passed[0], plain)
    network.compile(backend="aot_eager", dynamic=False)
    for _ in range(2):
        with tap.record() as compiled:
            output = network(pixels)
        assert torch.equal(compiled[1], output) and torch.equal(compiled[0], plain)
        compiled[0].sum().backward()
        gradient = network.get_parameter("conv1.weight").grad
        assert gradient is not None and gradient.abs().sum() > 0
    network(pixels)
    assert len(compiled) == 2  # outside a block nothing is kept
    with HeadTap(network).record() as nothing:
        network(pixels)
    assert nothing == []

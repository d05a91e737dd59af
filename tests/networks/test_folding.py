"""BatchNorms folded by data flow: only where it is sound, and with the same outputs and tapped maps."""

import logging
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from mgd_ssl.networks.folding import fold_batch_norms, pairs_by_data_flow
from mgd_ssl.networks.taps import FeatureTaps

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish)


def as_trained(network: nn.Module) -> nn.Module:
    """In eval mode, with BatchNorms as a training would leave them: nowhere the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval().requires_grad_(False)


def batch_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


NETWORKS = ["resnet18", "resnet50", "mobilenet_v2", "shufflenet_v2_x1_0", "regnet_y_400mf", "mobilenet_v3_small"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_torchvision_are_folded_whole(name: str) -> None:
    torch.manual_seed(0)
    network = as_trained(torchvision.models.get_model(name, weights=None))
    names = [name for name, module in network.named_modules() if isinstance(module, ACTIVATIONS)]
    taps, images, count = FeatureTaps(network, names), torch.randn(2, 3, 64, 64), batch_norms(network)
    modules = {name for name, _ in network.named_modules()}
    with taps.record() as expected_maps:
        expected = network(images)
    assert fold_batch_norms(network) == count > 0
    assert batch_norms(network) == 0
    assert {name for name, _ in network.named_modules()} == modules
    with taps.record() as maps:
        assert_same(network(images), expected)
    for found_map, expected_map in zip(maps, expected_maps, strict=True):
        assert_same(found_map, expected_map)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1)


class Parts(nn.Module):
    """Two convolutions and two BatchNorms, for networks that differ in their forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(), nn.BatchNorm2d(3), conv(), nn.BatchNorm2d(3)


class Crossed(Parts):
    """Defined conv1, bn1, conv2, bn2; bn1 comes after conv2 and bn2 after conv1."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv2(self.bn2(self.conv1(x)).relu()))


class Before(Parts):
    """BatchNorm, activation, convolution, as in a pre-activation ResNet; only the last one follows a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv1(self.bn1(x).relu())) + self.conv2(x)


class Sum(Parts):
    """A BatchNorm of two convolutions' sum."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x) + self.conv2(x)) + self.bn2(x)


class OneNorm(Parts):
    """A BatchNorm that is called after each of two convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) + self.bn1(self.conv2(x)).relu() + self.bn2(x)


class OneConvolution(Parts):
    """A convolution that is called twice, each time with a BatchNorm of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv1(self.bn1(self.conv1(x)).relu()))


class Aliased(Parts):
    """The same, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = self.conv1

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


class Used(Parts):
    """A convolution whose output is used beside its BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        return self.bn2(self.conv2(self.bn1(y) + y))


class Read(Parts):
    """A convolution whose weights are used by another call."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) + nn.functional.conv2d(x, self.conv1.weight, padding=1) + self.bn2(x)


class Default(Parts):
    """An argument that is left out decides the way."""

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        y = self.conv1(x)
        return self.bn1(y) + y if more is None else self.bn1(y)


class BatchStatistics(Parts):
    """A BatchNorm that never learnt statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x))))


class TwoFaced(Parts):
    """Treats a tensor differently from what stands for it while tracing."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        return self.bn1(y) + y if isinstance(x, Tensor) else self.bn1(y)


class Dynamic(Parts):
    """Cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) if x.mean() > 9 else self.bn2(self.conv2(x))


class Attribute(Parts):
    """Asks its BatchNorm for something that an identity has not."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) * self.bn1.eps


LEFT: dict[Callable[[], nn.Module], int] = {
    Crossed: 0, Before: 1, Sum: 2, OneNorm: 2, OneConvolution: 2, Aliased: 2, Used: 1, Read: 2, Default: 2,
    BatchStatistics: 1, TwoFaced: 2, Dynamic: 2, Attribute: 2,
}  # fmt: skip
ONLY_BY_TRYING = (TwoFaced, Dynamic, Attribute)  # their data flow, as traced, says nothing or too little


@pytest.mark.parametrize(("kind", "left"), LEFT.items(), ids=lambda kind: getattr(kind, "__name__", ""))
def test_only_what_is_sound_is_folded(kind: Callable[[], nn.Module], left: int) -> None:
    torch.manual_seed(0)
    network, images = as_trained(kind()), torch.randn(2, 3, 16, 16)
    expected = network(images)
    assert kind in ONLY_BY_TRYING or len(pairs_by_data_flow(network)) == 2 - left
    assert fold_batch_norms(network) == 2 - left
    assert batch_norms(network) == left
    assert_same(network(images), expected)
    if left == 2:
        assert torch.equal(network(images), expected)  # nothing was touched


def test_a_network_in_training_is_left_alone() -> None:
    network = as_trained(Crossed()).train()
    assert fold_batch_norms(network) == 0


@pytest.mark.parametrize("kind", ONLY_BY_TRYING)
def test_what_is_left_is_said_in_the_debug_log(kind: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "mgd_ssl"):
        fold_batch_norms(as_trained(kind()))
    assert "BatchNorms" in caplog.text
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


def test_hooks_stay_on_a_folded_convolution_and_the_random_state_too() -> None:
    network = as_trained(Crossed())
    seen: list[nn.Module] = []
    convolution = network.get_submodule("conv1")
    convolution.register_forward_pre_hook(lambda module, inputs: seen.append(module))
    state = torch.get_rng_state()
    assert fold_batch_norms(network) == 2
    assert torch.equal(torch.get_rng_state(), state)
    seen.clear()
    network(torch.randn(1, 3, 16, 16))
    assert seen == [convolution]


def test_what_is_looked_at_decides() -> None:
    """A map read between a convolution and its BatchNorm keeps the network as it is."""
    network = as_trained(Crossed())
    taps = FeatureTaps(network, ["bn1"])  # what goes into it

    def look(images: Tensor) -> list[Tensor]:
        with taps.record() as maps:
            network(images)
        return maps

    assert fold_batch_norms(network, look) == 0
    assert batch_norms(network) == 2

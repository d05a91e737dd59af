"""What a network's first BatchNorm tells of the input it has seen."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.normalisation import (
    PIXELS,
    USUAL,
    Normalisation,
    doubted,
    expected_level,
    normalisation_of,
    take_input_of,
)
from mgd_ssl.networks.weights import Asked, load_trained

HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BYTES = Normalisation((0, 0, 0), (1 / 255, 1 / 255, 1 / 255))


def normalised(pixels: Tensor, by: Normalisation) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in by)
    return (pixels - mean) / std


@torch.no_grad()
def fed(arch: str, by: Normalisation) -> nn.Module:
    """A network whose BatchNorms have seen smooth pictures of the usual brightness, normalised so."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_backbone(arch).train()
        for _ in range(30):
            coarse = torch.rand(8, 3, 6, 6) * 0.45 + torch.rand(8, 1, 1, 1) * 0.45
            network(normalised(F.interpolate(coarse, 48, mode="bicubic").clamp(0, 1), by))
    return network


@pytest.mark.parametrize(
    ("arch", "by", "level"), [("thin_resnet10", PIXELS, 0.45), ("mobilenet_v1", BYTES, 0.45 * 255)]
)
def test_the_level_of_raw_pixels_is_found_and_doubted(
    tmp_path: Path, arch: str, by: Normalisation, level: float
) -> None:
    network = fed(arch, by)
    found = expected_level(network)
    assert found == pytest.approx(level, rel=0.2)
    assert "seems to have been trained on input with a mean of" in str(doubted(found, USUAL))
    assert doubted(found, by) is None
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    report = load_trained(tmp_path / "weights.pth").report
    assert any("set teacher_mean and teacher_std" in warning for warning in report.warnings())
    assert load_trained(tmp_path / "weights.pth", Asked(normalisation=by)).report.warnings() == []


@pytest.mark.parametrize("by", [USUAL, HALF])
def test_centred_input_is_not_doubted(tmp_path: Path, by: Normalisation) -> None:
    network = fed("thin_resnet10", by)
    assert doubted(expected_level(network), USUAL) is None
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    assert load_trained(tmp_path / "weights.pth").report.warnings() == []


@pytest.mark.parametrize("network", [nn.Linear(2, 2), nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))])
def test_networks_that_do_not_tell(network: nn.Module) -> None:
    assert expected_level(network) is None and doubted(None, USUAL) is None


@torch.no_grad()
def test_rescaled_input_moves_with_the_network_and_leaves_its_state_alone() -> None:
    network = build_backbone("thin_resnet10").eval()
    names, pixels = list(network.state_dict()), torch.rand(2, 3, 32, 32).double()
    expected = network.double()(normalised(pixels, HALF).double())
    take_input_of(network, HALF)
    assert list(network.state_dict()) == names
    torch.testing.assert_close(network.double()(normalised(pixels, USUAL).double()), expected, rtol=1e-5, atol=1e-6)
    before = len(network._forward_pre_hooks)
    take_input_of(network, USUAL)  # the same as is given: nothing to do
    assert len(network._forward_pre_hooks) == before


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (None, None),
        ([0.5], [0.5]),
        ([0.5] * 3, [0.5, 0.5, 0.0]),
        ([0.5] * 3, [0.5, 0.5, -1]),
        ("abc", [0.5] * 3),
        ([0.5, 0.5, float("nan")], [0.5] * 3),
        ([1e9] * 3, [0.5] * 3),
        ([0.5] * 3, 3),
    ],
)
def test_what_is_no_normalisation_is_not_taken(mean: object, std: object) -> None:
    assert normalisation_of(mean, std) is None
    assert normalisation_of([0.5, 0.5, 0.5], (0.5, 0.5, 0.5)) == HALF

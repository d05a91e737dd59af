"""A teacher in 8 bits: convolutions of whole numbers, close to the float32 ones, refused where there are none."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mgd_ssl.errors import UserError
from mgd_ssl.networks import int8
from mgd_ssl.networks.backbones import build_backbone, feature_width, set_head
from mgd_ssl.networks.int8 import Int8Conv2d, check_int8, eighths, int8_teacher, read_by_convolutions, seen_ranges
from mgd_ssl.networks.low_precision import half_teacher
from mgd_ssl.networks.stages import StageTap
from mgd_ssl.networks.teacher import Teacher

CPU = torch.device("cpu")
SEEDS = (0, 1, 2)
able = pytest.mark.skipif(
    not int8.has_native_int8(), reason="this processor has no VNNI: its sums saturate, and the setting is refused"
)


def by_whole_numbers(conv: nn.Conv2d, images: Tensor, low: float, high: float) -> Tensor:
    """The definition, in float64: bytes of the input, 8 bits a weight, exact sums, then the scales."""
    scale = (high - low) / 255
    zero = round(-low / scale)
    inputs = ((images.double() / scale).add(zero).add(0.5).floor().clamp(0, 255)) - zero
    weights = torch.empty_like(conv.weight, dtype=torch.float64)
    steps = conv.weight.double().flatten(1).abs().max(1).values / 127
    for channel, step in enumerate(steps):
        weights[channel] = (conv.weight[channel].double() / step).round()
    sums = functional.conv2d(inputs, weights, None, conv.stride, conv.padding, conv.dilation)
    bias = torch.zeros(len(steps)) if conv.bias is None else conv.bias
    return sums * (scale * steps)[:, None, None] + bias.double()[:, None, None]


@able
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(16, 8, 3, padding=2, dilation=2), nn.Conv2d(16, 8, 7, stride=(1, 2), padding=(3, 0)),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("low", "high"), [(-2.0, 3.0), (0.0, 2.0)])
def test_a_convolution_is_that_of_whole_numbers(conv: nn.Conv2d, low: float, high: float) -> None:
    torch.manual_seed(0)
    nn.init.normal_(conv.weight, std=0.1)
    images = 2 * torch.randn(2, 16, 9, 9)  # some are cut off
    found = Int8Conv2d(conv, (low, high))(images.contiguous(memory_format=torch.channels_last))
    expected = by_whole_numbers(conv, images, low, high)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    different = (found - expected).abs() > 1e-3  # float32 may round another way at a half
    assert different.float().mean() < 0.02
    bytes_left = Int8Conv2d(conv, (low, high), leaves=1.5)(images)
    whole = (expected.clamp(0, 1.5) / (1.5 / 255)).round()
    assert bytes_left.dtype == torch.uint8
    assert (bytes_left.double() - whole).abs().max() <= 1


def trained(seed: int) -> tuple[Teacher, Tensor, Tensor, Tensor]:
    """A folded teacher that tells eight patterns in noise apart, images it was calibrated on, others, their labels."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    patterns = torch.randn(8, 3, 8, 8, generator=generator).repeat(1, 1, 4, 4)

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(8, (count,), generator=generator)
        return patterns[labels] + 1.5 * torch.randn(count, 3, 32, 32, generator=generator), labels

    network = build_backbone("thin_resnet14")
    set_head(network, nn.Linear(feature_width(network), 8))
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9)
    for _ in range(40):
        images, labels = drawn(32)
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    teacher = Teacher(network)
    teacher.fold()
    return teacher, drawn(128)[0], *drawn(200)


def neighbours_right(features: Tensor, labels: Tensor) -> float:
    """Share of the last half of images whose nearest five of the first half vote for their class."""
    features = functional.normalize(features.float().flatten(1))
    bank, asked = features[:100], features[100:]
    votes = labels[:100][(asked @ bank.T).topk(5).indices]
    return float((votes.mode().values == labels[100:]).float().mean())


@able
@pytest.mark.parametrize("seed", SEEDS)
def test_maps_and_neighbours_of_a_trained_teacher_stay(seed: int) -> None:
    teacher, calibration, images, labels = trained(seed)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    ranges = seen_ranges(teacher, calibration.split(64))
    exact, eighth = teacher(images), int8_teacher(teacher, ranges)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = half_teacher(teacher, torch.bfloat16)(images)
    right = neighbours_right(exact[-1].mean((2, 3)), labels)
    error = (max(right * (1 - right), 0.01) / 100) ** 0.5
    assert right > 0.5
    for found in (half, eighth(images)):
        for one, other in zip(found, exact, strict=True):
            assert functional.cosine_similarity(one.float().flatten(1), other.flatten(1)).mean() >= 0.999
        assert abs(neighbours_right(found[-1].mean((2, 3)), labels) - right) <= error
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(torch.equal(*pair) for pair in zip(teacher(images), exact, strict=True))  # it is read by its own taps


def test_ranges_are_those_of_all_images_in_any_order() -> None:
    torch.manual_seed(0)
    teacher = Teacher(build_backbone("thin_resnet10"))
    images = torch.randn(8, 3, 32, 32)
    ranges = seen_ranges(teacher, images.split(3))
    assert ranges["conv1"] == (float(images.min()), float(images.max()))
    assert ranges.keys() == eighths(teacher.backbone).keys()
    assert ranges["layer1.0.conv1"][0] == 0  # after a ReLU
    again = seen_ranges(teacher, images.flip(0).split(5))
    for name, limits in ranges.items():
        assert limits == pytest.approx(again[name], rel=1e-5)
    assert not any(module._forward_pre_hooks for module in eighths(teacher.backbone).values())


def test_bytes_are_left_between_the_convolutions_of_a_block_alone() -> None:
    teacher = Teacher(build_backbone("resnet50"))
    teacher.fold()
    convolutions = eighths(teacher.backbone)
    found = read_by_convolutions(teacher.backbone, convolutions, {stage.relu for stage in teacher.stages})
    inner = [name for name in convolutions if name.endswith(("conv1", "conv2")) and name.startswith("layer")]
    assert sorted(found) == sorted(inner)
    assert found["layer2.1.conv1"] == "layer2.1.conv2"


class Chain(nn.Module):
    """Convolutions with a ReLU between, one of them called twice or not."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.norm, self.relu, self.other = nn.Identity(), nn.ReLU(), nn.ReLU()
        self.twice = twice

    def forward(self, images: Tensor) -> Tensor:
        """[N, 4, H, W] -> the same."""
        output = self.second(self.relu(self.norm(self.first(images))))
        output = self.third(self.other(output))
        result: Tensor = self.first(output) if self.twice else output
        return result


@able
def test_what_is_tapped_or_called_twice_stays_float() -> None:
    names = {"first", "second", "third"}
    assert read_by_convolutions(Chain(), names, set()) == {"first": "second", "second": "third"}
    assert read_by_convolutions(Chain(), names, {"other"}) == {"first": "second"}
    assert read_by_convolutions(Chain(), {"first", "second"}, set()) == {"first": "second"}
    assert read_by_convolutions(Chain(twice=True), names, set()) == {"second": "third"}
    torch.manual_seed(0)
    network = Chain()
    teacher = Teacher(network, stages=[StageTap("other", "", 4, 1)])
    images = torch.rand(4, 4, 6, 6)
    eighth = int8_teacher(teacher, seen_ranges(teacher, [images]))
    (found,), (exact,) = eighth(images), teacher(images)
    assert found.dtype == torch.float32 and found.min() < 0
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0)


def test_it_is_refused_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags: fpu avx512_vnni vme\n")
    monkeypatch.setattr(int8, "ABOUT", tmp_path / "cpuinfo")
    check_int8(None, CPU)
    check_int8(Teacher(build_backbone("thin_resnet14")), CPU)
    check_int8(Teacher(build_backbone("mobilenet_v2")), CPU)
    with pytest.raises(UserError, match="is for CPUs, not cuda: pass"):
        check_int8(None, torch.device("cuda"))
    linear = nn.Sequential(nn.Conv2d(3, 4, 4), nn.Flatten(), nn.Linear(64, 64))
    with pytest.raises(UserError, match="most of the teacher is none: pass"):
        check_int8(Teacher(linear, stages=[]), CPU)
    (tmp_path / "cpuinfo").write_text("flags: fpu avx2\n")
    with pytest.raises(UserError, match=r"no instructions for \(VNNI\): pass"):
        check_int8(None, CPU)

"""Fused convolutions: the same maps as one after the other, and taken only where a trial on the device proves them."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from mgd_ssl.networks import fused
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.convolution_relu import can_fuse, convolution_relu
from mgd_ssl.networks.fused import close, fused_teacher, proven
from mgd_ssl.networks.joining import Joining
from mgd_ssl.networks.low_precision import half_teacher
from mgd_ssl.networks.normalisation import Normalisation, take_input_of
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime
from tests.networks.test_folding import as_trained

LAST = torch.channels_last
# ReLUs that are not tapped, of convolutions with one group
JOINED = {
    "resnet18": 13,
    "resnet50": 45,
    "thin_resnet10": 5,
    "thin_resnet14": 9,
    "mobilenet_v1": 10,
    "timm.resnet18": 13,
}


def teacher(name: str) -> Teacher:
    torch.manual_seed(0)
    made = Teacher(as_trained(build_backbone(name)))
    made.fold()
    return made


def images(edge: int = 64) -> Tensor:
    return torch.randn(2, 3, edge, edge, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=LAST)


def joined(made: Teacher) -> list[torch.fx.Node]:
    return [node for node in made.backbone.get_submodule("fused").graph.nodes if node.target is convolution_relu]  # type: ignore[union-attr]


def made_from(whole: Teacher) -> Teacher:
    made = fused_teacher(whole)
    assert made is not None
    return made


@pytest.mark.parametrize("name", JOINED)
def test_maps_and_output_are_those_of_the_plain_teacher(name: str) -> None:
    whole = teacher(name)
    (expected, logits), made = whole.watched(images()), made_from(whole)
    assert len(joined(made)) == JOINED[name]
    maps, output = made.watched(images())
    assert torch.equal(made.backbone(images()), output)  # without taps
    for one, other in zip([*maps, output], [*expected, logits], strict=True):
        assert one.stride() == other.stride() and other.min() < 0
        # only the biases of two summands are added in another order
        torch.testing.assert_close(one, other, rtol=0, atol=5e-6 * float(other.abs().max()))
    assert all(torch.equal(*pair) for pair in zip(whole(images()), expected, strict=True))  # it stays as it was
    assert {id(p) for p in whole.parameters()} <= {id(p) for p in made.parameters()}  # no copies


def test_the_input_is_normalised_by_a_fused_teacher_too() -> None:
    whole = teacher("thin_resnet14")
    take_input_of(whole.backbone, Normalisation((0.5, 0.4, 0.3), (0.2, 0.1, 0.3)))
    made = made_from(whole)
    assert all(torch.equal(*pair) for pair in zip(made(images()), whole(images()), strict=True))


def test_in_half_precision_the_images_are_all_that_is_cast() -> None:
    half = half_teacher(teacher("thin_resnet14"), torch.bfloat16)
    made = made_from(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for one, other in zip(made(images()), half(images()), strict=True):
            assert one.dtype == torch.bfloat16 and close(one, other, 8)


class Other(nn.Module):
    """Convolutions that are read twice, of which only the first can be joined."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.relu, self.tapped = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        y = self.second(x)
        z = self.relu(y) + self.relu(y + y) + self.relu(self.third(x) + 1.0)
        return self.tapped(self.third(z) + z)


def test_what_something_else_reads_stays() -> None:
    torch.manual_seed(0)
    network, x = Other().eval().requires_grad_(False), images(16)
    graph = Joining(network, ["tapped"]).joined()
    assert graph is not None
    assert sum(node.target is convolution_relu for node in graph.graph.nodes) == 1
    assert torch.equal(graph(x), network(x))
    assert Joining(network, ["tapped", "first"]).joined() is None  # what goes into a tapped module is read there


def test_a_tensor_without_values_has_the_shape_and_layout() -> None:
    given = (images(15), torch.randn(8, 3, 3, 3), torch.randn(8), None, [2, 2, 1, 1, 1, 1])
    torch.library.opcheck(convolution_relu, given, test_utils=("test_schema", "test_faketensor"))


def broken(found: Tensor) -> Tensor:
    raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED\nand more")


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "raises": (broken, "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    "differs": (lambda found: found * 1.01, "it yields something else"),
    "one value": (lambda found: found.index_fill(2, torch.tensor(0), 9.0), "it yields something else"),
    "NaN": (lambda found: found * torch.nan, "it yields something else"),
    "layout": (lambda found: found.contiguous(), "it yields torch.float32"),
    "precision": (lambda found: found.double(), "it yields torch.float64"),
}


@pytest.mark.parametrize("how", WRONG)
def test_convolutions_that_are_wrong_on_the_device_stay_plain(how: str, caplog: pytest.LogCaptureFixture) -> None:
    change, told = WRONG[how]
    whole = teacher("thin_resnet14")
    made, calls = made_from(whole), []
    real = fused.refusal

    def every_other(args: tuple[Any, ...], expected: Tensor) -> str:
        calls.append(args)
        if len(calls) % 2:
            return real(args, expected)
        with patch.object(fused, "convolution_relu", lambda *given: change(convolution_relu(*given))):
            return real(args, expected)

    with patch.object(fused, "refusal", every_other), caplog.at_level(logging.WARNING, "mgd_ssl"):
        assert proven(made, whole, images()) is made
    assert len(joined(made)) == 5
    (record,) = caplog.records
    assert record.getMessage().startswith("4 of 9 convolutions of the teacher are not fused") and told in caplog.text
    assert all(torch.equal(*pair) for pair in zip(made(images()), whole(images()), strict=True))


@pytest.mark.parametrize(("width", "told"), [(512, "it would yield something else"), (128, "RuntimeError: mat1")])
def test_a_network_that_is_wrong_as_a_whole_is_not_taken(
    width: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = teacher("thin_resnet14")
    made = made_from(whole)
    made.backbone.get_submodule("fused").fc = nn.Linear(width, 1)
    with caplog.at_level(logging.WARNING, "mgd_ssl"):
        assert proven(made, whole, images()) is whole
    assert [told in record.getMessage() for record in caplog.records if record.name == "mgd_ssl"] == [True]


def test_what_is_right_is_taken_without_a_word_and_compiled_in_one_piece(caplog: pytest.LogCaptureFixture) -> None:
    whole = teacher("thin_resnet14")
    made = made_from(whole)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    made.backbone.compile(dynamic=False, backend=backend)
    assert proven(made, whole, images()) is made
    assert len(joined(made)) == 9 and not caplog.records
    assert not graphs  # the trial is not compiled
    for _ in range(2):
        assert all(torch.equal(*pair) for pair in zip(made(images()), whole(images()), strict=True))
    (graph,) = graphs  # without a break
    assert sum(node.target is convolution_relu for node in graph.graph.nodes) == 9


def test_a_network_that_cannot_be_traced_is_left() -> None:
    class Dynamic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.mean() > 0 else -x

    assert fused_teacher(Teacher(Dynamic(), stages=[])) is None
    assert fused_teacher(Teacher(nn.Sequential(nn.Conv2d(3, 4, 1)), stages=[])) is None  # there is no ReLU


def test_only_gpus_on_which_cudnn_may_choose_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Runtime(torch.device("cuda", 0), torch.bfloat16, LAST, 1)
    assert can_fuse(gpu)
    assert not can_fuse(replace(gpu, device=torch.device("cpu")))
    assert not can_fuse(replace(gpu, device=torch.device("mps")))
    assert not can_fuse(replace(gpu, memory_format=torch.contiguous_format))
    with torch.backends.cudnn.flags(enabled=False):
        assert not can_fuse(gpu)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not can_fuse(gpu)
    monkeypatch.undo()
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert not can_fuse(gpu)

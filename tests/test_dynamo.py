"""Compiled runs: no graph breaks, and nothing is compiled again after the first epoch."""

from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from mgd_ssl.distillation.rematch import padded
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.backbones import build_backbone
from tests.runs import stepper_for, tiny


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[Any]]]:
    """Sizes of the inputs of every graph that is compiled; it is then run as it is."""
    found: list[list[Any]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append([tuple(each.shape) if isinstance(each, Tensor) else each for each in inputs])
        return graph.forward

    for module in (nn.Module, MGD):
        monkeypatch.setattr(module, "compile", partialmethod(module.compile, backend=backend))
    torch._dynamo.reset()
    counters.clear()
    yield found
    torch._dynamo.reset()


def test_two_epochs_with_a_matching_update_between_are_compiled_once(
    image_folder: Path, tmp_path: Path, graphs: list[list[Any]]
) -> None:
    teacher = tmp_path / "teacher.pt"
    network = build_backbone("thin_resnet14")
    network(torch.randn(4, 3, 32, 32))  # BatchNorms see something
    torch.save(network.state_dict(), teacher)
    settings = tiny(
        image_folder, tmp_path / "run", teacher=teacher, runtime={"compile": True},
        mgd={"matching_images": 19},  # the last batch of the update is smaller than the others
    )  # fmt: skip
    stepper, batches = stepper_for(settings, 3)  # both networks were seen in a matching update
    stepper.step(batches[0])
    # networks in training and in evaluation, the key encoder, reducing the maps and the loss
    first = len(graphs)
    assert 5 <= first <= 8, [sizes[:1] for sizes in graphs]
    for batch in batches[1:]:
        stepper.step(batch)
    stepper.task.rematch()
    for batch in batches:
        stepper.step(batch)
    assert len(graphs) == first
    assert not counters["graph_break"]
    assert not any(isinstance(size, torch.SymInt) for sizes in graphs for shape in sizes for size in shape)


def test_a_filled_up_batch_has_the_maps_of_the_smaller_one() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(3, 4, 3)
    seen: list[int] = []

    def maps(images: Tensor) -> list[Tensor]:
        seen.append(len(images))
        assert images.is_contiguous(memory_format=torch.channels_last)
        return [network(images)]

    images = torch.randn(5, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for count in (5, 2):
        (found,) = padded(maps, 5)(images[:count])
        torch.testing.assert_close(found, network(images)[:count])
    assert seen == [5, 5]

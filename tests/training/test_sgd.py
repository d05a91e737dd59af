"""The optimiser of a CPU steps as torch's own, in either memory format."""

import copy

import pytest
import torch
from torch import nn

from mgd_ssl.training.sgd import DenseSGD
from mgd_ssl.training.update import sgd


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1, bias=False), nn.Flatten(), nn.Linear(16, 2)
    )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("grad_layout", [torch.channels_last, torch.contiguous_format])
def test_steps_are_those_of_torchs_sgd(
    nesterov: bool, layout: torch.memory_format, grad_layout: torch.memory_format
) -> None:
    ours = network().to(memory_format=layout)
    theirs = copy.deepcopy(ours)
    optimizers: list[torch.optim.Optimizer] = [
        sgd(ours.parameters(), 0.1, 0.9, 0.01, nesterov),
        torch.optim.SGD(theirs.parameters(), 0.1, 0.9, weight_decay=0.01, nesterov=nesterov, fused=False),
    ]
    assert isinstance(optimizers[0], DenseSGD)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            gradient = torch.randn(one.shape, generator=generator)
            gradient = gradient.to(memory_format=grad_layout) if gradient.dim() == 4 else gradient
            one.grad, other.grad = gradient.clone(), gradient.clone()
        list(ours.parameters())[3].grad = list(theirs.parameters())[3].grad = None  # one that nobody asked
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        assert one.stride() == other.stride()
    momenta = [optimizer.state_dict()["state"] for optimizer in optimizers]
    for number, state in momenta[1].items():
        if state.get("momentum_buffer") is not None:
            torch.testing.assert_close(
                momenta[0][number]["momentum_buffer"], state["momentum_buffer"], rtol=1e-6, atol=1e-7
            )


def test_momenta_of_another_memory_format_are_taken_over() -> None:
    ours = network().to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours)
    optimizer, plain = sgd(ours.parameters(), 0.1, 0.9, 0.0), torch.optim.SGD(theirs.parameters(), 0.1, 0.9)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        momentum = torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
        optimizer.state[one]["momentum_buffer"], plain.state[other]["momentum_buffer"] = momentum.clone(), momentum
        one.grad, other.grad = torch.ones_like(one), torch.ones_like(other)
    for _ in range(2):
        optimizer.step()
        plain.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)

"""Reducers against loops."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from mgd_ssl.mgd.matching import assign
from mgd_ssl.mgd.reducers import REDUCERS, random_drop
from tests.mgd.drawn import generator, randn

# reducers

NAIVE: dict[str, tuple[Callable[[list[float]], float], Callable[[list[float]], float]]] = {
    "amp": (lambda group: max(group, key=abs), lambda margins: sum(margins) / len(margins)),
    "max": (max, max),
    "mean": (lambda group: sum(group) / len(group), lambda margins: sum(margins) / len(margins)),
    "sparse": (lambda group: group[0], lambda margins: margins[0]),
}


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("c_t", [8, 7])
def test_reducer_against_a_loop(name: str, c_t: int) -> None:
    t, margin = randn(2, c_t, 3, 4), -torch.rand(c_t, generator=generator())
    assignment = assign(torch.rand(3, c_t, generator=generator(5)))  # [3, 2]
    target, reduced = REDUCERS[name](t, margin, assignment)
    assert target.shape == (2, 3, 3, 4)
    of_values, of_margins = NAIVE[name]
    for n, s, h, w in itertools.product(range(2), range(3), range(3), range(4)):
        group = [t[n, c, h, w].item() for c in assignment[s]]
        assert target[n, s, h, w].item() == pytest.approx(of_values(group), rel=1e-6)
    for s in range(3):
        assert reduced[s].item() == pytest.approx(of_margins([margin[c].item() for c in assignment[s]]), rel=1e-6)


@pytest.mark.parametrize("name", NAIVE)
def test_reducer_is_the_same_for_both_memory_formats(name: str) -> None:
    t, margin, assignment = randn(2, 8, 3, 4), -torch.rand(8), assign(torch.rand(4, 8, generator=generator(5)))
    for one, other in zip(
        REDUCERS[name](t, margin, assignment),
        REDUCERS[name](t.to(memory_format=torch.channels_last), margin, assignment),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_absolute_max_pooling_of_a_tie_takes_the_positive_value() -> None:
    t = torch.tensor([2.0, -2.0]).view(1, 2, 1, 1)
    assert REDUCERS["amp"](t, torch.zeros(2), torch.tensor([[1, 0]]))[0].item() == 2


def test_random_drop_takes_each_channel_of_a_group_as_often_and_its_own_margin() -> None:
    t = torch.arange(4.0).view(1, 4, 1, 1)
    assignment = torch.tensor([[2, 0], [1, 3]])
    draws = generator(3)
    seen = []
    for _ in range(2000):
        target, margin = random_drop(t, -torch.arange(4.0), assignment, draws)
        assert torch.equal(margin, -target.flatten())
        seen.append(target.flatten())
    counts = torch.stack(seen).flatten().long().bincount(minlength=4)
    assert (counts - 1000).abs().max() < 4 * math.sqrt(500)
    assert set(torch.stack(seen)[:, 0].tolist()) == {0.0, 2.0}

"""Learning rate and matching epochs against the published ones, written out again."""

import math
from itertools import pairwise
from typing import Literal

import pytest

from mgd_ssl.mgd.matching import matching_epochs
from mgd_ssl.training.schedule import WarmupCosine


def published_lr(epoch: int) -> float:
    """Of the whole epoch, 200 epochs, 3 of them warm-up: cosine over all of them, warm-up from a thousandth."""
    if epoch < 3:
        return 0.03 / 1000 + (0.03 - 0.03 / 1000) * epoch / 3
    return 0.03 * (math.cos(epoch * math.pi / 200) + 1) / 2


def test_matching_epochs_of_200_are_the_published_ones() -> None:
    assert matching_epochs(200) == (1, 2, 3, 6, 9, 15, 26, 43, 74, 126)


def test_matching_epochs_of_200_follow_from_the_published_formula() -> None:
    assert matching_epochs(200) == tuple(math.ceil(10 ** (2.1 * i / 9)) for i in range(10))


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 10, 20, 30, 50, 100, 159, 400, 800, 1600])
def test_matching_epochs_of_other_lengths_keep_their_shape(epochs: int) -> None:
    updates = matching_epochs(epochs)
    assert len(updates) <= 10
    assert list(updates) == sorted(set(updates))
    assert all(1 <= epoch < epochs for epoch in updates)
    if epochs >= 3:
        assert updates[0] == 1
        assert updates[-1] / epochs == pytest.approx(10**2.1 / 200, abs=1 / epochs)
        gaps = [after - before for before, after in pairwise(updates)]
        assert gaps == sorted(gaps)


@pytest.mark.parametrize("step", [0, 1, 2502, 5003])
def test_epoch_schedule_is_the_published_staircase(step: int) -> None:
    rate = WarmupCosine(peak=0.03, epochs=200, steps_per_epoch=5004, warmup_epochs=3, by="epoch")
    rates = [rate(epoch * 5004 + step) for epoch in range(200)]
    assert rates == pytest.approx([published_lr(epoch) for epoch in range(200)], rel=1e-12)


def test_step_schedule_agrees_with_the_staircase_where_epochs_begin() -> None:
    by_step, by_epoch = (WarmupCosine(0.03, 200, 100, 3, by) for by in ("step", "epoch"))
    assert [by_step(100 * epoch) for epoch in range(200)] == [by_epoch(100 * epoch) for epoch in range(200)]


def test_step_schedule_rises_to_the_peak_and_falls_to_zero() -> None:
    rates = [WarmupCosine(0.1, 20, 50, 2)(step) for step in range(20 * 50)]
    assert rates[0] == pytest.approx(0.1 / 1000)
    assert rates[50] == pytest.approx(0.1 * (0.001 + 0.999 / 2))
    assert rates[100] == pytest.approx(0.1 * (1 + math.cos(math.pi * 2 / 20)) / 2)
    assert rates[:100] == sorted(rates[:100]) and rates[100:] == sorted(rates[100:], reverse=True)
    assert 0 < rates[-1] < 1e-5
    assert all(rate > 0 for rate in rates)


@pytest.mark.parametrize("by", ["step", "epoch"])
@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (1, 0.5), (1, 3), (2, 3), (3, 3), (20, 2.5), (1000, 10)])
def test_rate_stays_between_zero_and_the_peak(by: Literal["step", "epoch"], epochs: int, warmup: float) -> None:
    rates = [WarmupCosine(0.5, epochs, 7, warmup, by)(step) for step in range(7 * epochs)]
    assert all(0 < rate <= 0.5 for rate in rates)


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert WarmupCosine(0.4, 5, 10)(0) == 0.4

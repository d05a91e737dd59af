"""Margins against numerical integration and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from mgd_ssl.mgd.margin import MeasuredMargin, relu_margin
from mgd_ssl.mgd.mgd import INITIAL_MARGIN
from tests.mgd.drawn import randn

# margin


@pytest.mark.parametrize(("gamma", "beta"), [(1.0, 0.0), (-1.0, 0.0), (0.3, -0.9), (2.0, 1.0), (0.5, 1.2), (0.7, -6.0)])
def test_margin_is_the_mean_of_the_negative_part(gamma: float, beta: float) -> None:
    density = norm(beta, abs(gamma)).pdf
    low = beta - 12 * abs(gamma)
    expectation = quad(lambda x: x * density(x), low, 0)[0] / quad(density, low, 0)[0]
    ours = relu_margin(torch.tensor([gamma], dtype=torch.float64), torch.tensor([beta], dtype=torch.float64))
    assert ours.item() == pytest.approx(expectation, rel=1e-7)


def test_margin_of_a_channel_that_is_rarely_negative_is_three_deviations() -> None:
    assert relu_margin(torch.tensor([0.5]), torch.tensor([2.0])).item() == pytest.approx(-1.5)


@pytest.mark.parametrize(("beta", "margin"), [(-2.0, -2.0), (0.0, 0.0), (3.0, 0.0)])
def test_margin_of_a_constant_channel(beta: float, margin: float) -> None:
    assert relu_margin(torch.zeros(1), torch.tensor([beta])).item() == margin


def test_margin_at_initialisation_is_the_published_constant() -> None:
    assert relu_margin(torch.ones(1, dtype=torch.float64), torch.zeros(1)).item() == pytest.approx(INITIAL_MARGIN)
    assert pytest.approx(-math.sqrt(2 / math.pi)) == INITIAL_MARGIN


def test_margin_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        relu_margin(torch.tensor([float("nan")]), torch.zeros(1))
    with pytest.raises(ValueError, match="one length"):
        relu_margin(torch.ones(2), torch.zeros(3))


def test_measured_margin_is_the_mean_of_the_values_below_zero() -> None:
    maps = [randn(3, 4, 5, 5, seed=i) for i in range(2)]
    maps[0][:, 3] = maps[1][:, 3] = 1.0  # never negative
    measured = MeasuredMargin(4)
    for m in maps:
        measured.update(m)
    for c in range(3):
        values = np.concatenate([m[:, c].numpy().ravel() for m in maps])
        assert measured.margin()[c].item() == pytest.approx(values[values < 0].mean(), rel=1e-6)
    assert measured.margin()[3].item() == 0

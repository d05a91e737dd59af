"""Stretched steps against the many plain ones they stand for."""

import math

import numpy as np
import pytest
import torch

from linear_eval.heads import Heads, initial
from linear_eval.protocols import Setting
from linear_eval.stretch import Stretch, principal

LRS = [1e-4, 1e-2, 0.3, 2.0, 30.0]
VARIANCES = [1e-6, 0.02, 1.0, 7.0, 400.0]


@pytest.mark.parametrize("times", [1.0, 2.0, 7.0, 150.0])
def test_one_step_goes_as_far_as_plain_steps_on_a_quadratic(times: float) -> None:
    """Gradient descent on h w^2 / 2, one step after the other; where plain steps would overshoot, a step is one."""
    curvature = 0.1
    stretch = Stretch(times, curvature, torch.tensor(VARIANCES, dtype=torch.float64))
    weights, bias = stretch.lengths(torch.tensor(LRS, dtype=torch.float64), momentum=0.0)
    assert weights.shape == (5, 5) and bias.shape == (5,)
    for i, lr in enumerate(LRS):
        for variance, length in zip([*VARIANCES, 1.0], [*weights[i].tolist(), bias[i].item()], strict=True):
            h, w = curvature * variance, 1.0
            for _ in range(int(times) if lr * h < 1 else 1):
                w -= lr * h * w
            assert 1 - length * h == pytest.approx(w, abs=1e-9)


def test_momentum_counts_as_a_larger_learning_rate_where_it_saturates() -> None:
    stretch = Stretch(1000.0, 0.5, torch.tensor([4.0], dtype=torch.float64))
    lr, momentum = 0.01, 0.9
    length = stretch.lengths(torch.tensor([lr], dtype=torch.float64), momentum)[0].item()
    assert length / (1 - momentum) * 0.5 * 4 == pytest.approx(1)  # one Newton step


def test_features_that_do_not_vary_and_learning_rates_of_zero() -> None:
    weights, bias = Stretch(10.0, 0.1, torch.tensor([0.0, 1.0])).lengths(torch.tensor([0.0, 0.1]), 0.9)
    assert weights[0].tolist() == [0, 0] and bias[0] == 0
    assert weights[1, 0].item() == pytest.approx(1.0) and weights[1, 1] < 1


def test_principal_directions_against_numpy() -> None:
    x = np.random.default_rng(0).standard_normal((500, 6)) @ np.random.default_rng(1).standard_normal((6, 6))
    basis = principal([(part, part) for part in torch.from_numpy(x).float().split(150)], 6, torch.device("cpu"))
    turned = x @ basis.vectors.double().numpy()
    np.testing.assert_allclose(turned.T @ turned / 500, np.diag(basis.variances.numpy()), atol=1e-4)
    np.testing.assert_allclose(basis.variances, np.linalg.svd(x)[1][::-1] ** 2 / 500, rtol=1e-4, atol=1e-5)


def test_a_short_stretched_training_ends_about_where_the_long_one_does() -> None:
    """Of correlated features, for learning rates from too small to large; a plain short training falls far behind."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (2000,), generator=generator)
    means = torch.randn(5, 12, generator=generator)
    x = means[labels] + 1.5 * torch.randn(2000, 12, generator=generator) + 4 * torch.randn(2000, 1, generator=generator)
    x = (x - x.mean(0)) / x.std(0)
    basis = principal([(x, labels)], 12, torch.device("cpu"))
    assert basis.variances[-1] > 50 * basis.variances[0]
    settings = [Setting(lr, 0.0) for lr in (1e-4, 1e-3, 1e-2, 1e-1)]

    def losses(steps: int, times: float | None) -> list[float]:
        weight, bias = initial("normal", 5, 12, seed=1)
        features = x if times is None else x @ basis.vectors
        stretch = None if times is None else Stretch(times, 0.1, basis.variances)
        heads = Heads(weight if stretch is None else weight @ basis.vectors, bias, settings, 0.9, stretch)
        for step in range(steps):
            rows = torch.randint(2000, (100,), generator=generator)
            heads.step(features[rows], labels[rows], 0.5 * (1 + math.cos(math.pi * step / steps)), 100)
        return heads.measure([(features, labels)]).loss

    long, stretched, plain = losses(2000, None), losses(100, 20), losses(100, None)
    assert stretched == pytest.approx(long, rel=0.05)
    assert max(short / whole for short, whole in zip(plain, long, strict=True)) > 1.3

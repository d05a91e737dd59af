"""Mixed images by hand."""

import numpy as np
import torch
from torch import nn

from mgd_ssl.distillation.guide import Guide
from mgd_ssl.tasks.classifier import GuidedClassifier, Mixing


def test_mixing_is_a_function_of_its_seed() -> None:
    first, again, other = (Mixing.draw(0.3, 40, seed) for seed in (5, 5, 6))
    assert torch.equal(first.order, again.order) and first.share == again.share
    assert first.share != other.share and not torch.equal(first.order, other.order)
    assert sorted(first.order.tolist()) == list(range(40))


def test_shares_follow_the_beta_distribution() -> None:
    """Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1))."""
    for alpha in (0.2, 1.0, 4.0):
        shares = np.array([float(Mixing.draw(alpha, 2, seed).share) for seed in range(3000)])
        assert abs(shares.mean() - 0.5) < 0.03
        assert abs(shares.var() * 4 * (2 * alpha + 1) - 1) < 0.08


def test_a_share_of_one_changes_nothing_and_a_half_is_the_mean() -> None:
    torch.manual_seed(0)
    images, labels, order = torch.randn(6, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(5, -1, -1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    module = GuidedClassifier(network, Guide(network))
    plain = module(images, labels, {})
    whole = module(images, labels, {}, Mixing(torch.tensor(1.0), order))
    assert torch.equal(plain.losses["cross_entropy"], whole.losses["cross_entropy"])
    assert plain.shown["accuracy"] == whole.shown["accuracy"]
    half = Mixing(torch.tensor(0.5), order)
    torch.testing.assert_close(half.mixed(images), (images + images.flip(0)) / 2)
    logs = network(images).log_softmax(1)
    expected = -(logs[range(6), labels] + logs[range(6), labels.flip(0)]).mean() / 2
    torch.testing.assert_close(module(images, labels, {}, half).losses["cross_entropy"], expected)

"""Weights of terms over the epochs, and gradients held to a share."""

import math

import pytest
import torch
from torch import Tensor, nn

from mgd_ssl.distillation.guide import Guide
from mgd_ssl.distillation.simreg import SimReg
from mgd_ssl.distillation.term import Seen
from mgd_ssl.distillation.weighting import Weight

# weights


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (Weight(2.0), [2, 2, 2, 2, 2]),
        (Weight(2.0, since=1, until=3), [0, 2, 2, 0, 0]),
        (Weight(2.0, "linear", until=4), [2, 1.5, 1, 0.5, 0]),
        (Weight(2.0, "linear", 0.5, until=4), [2, 1.75, 1.5, 1.25, 0]),
        (Weight(2.0, "linear", since=2, until=4), [0, 0, 2, 1, 0]),
        (Weight(2.0, "cosine", until=4), [2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5), 0]),
        (Weight(2.0, "cosine", 0.1, until=4), [2, 0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2, 1.1, None, 0]),
    ],
)
def test_weight_over_the_epochs(weight: Weight, expected: list[float | None]) -> None:
    for epoch, value in enumerate(expected):
        assert value is None or weight(float(epoch)) == pytest.approx(value, abs=1e-12)


class TwoPulls(nn.Module):
    """A network whose output is its feature, so that gradients are known."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fc = nn.Linear(4, 3, bias=False), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.fc(self.trunk(images))
        return out


def test_balance_holds_a_gradient_to_its_share() -> None:
    torch.manual_seed(0)
    network = TwoPulls()
    weight = Weight(7.0, "linear", until=10, balance=0.25)
    guide = Guide(network, (), {"simreg": SimReg(nn.Identity())}, {"simreg": weight}, head="fc")
    taught = Seen(feature=torch.randn(5, 3), epoch=6.0)
    for _ in range(2):  # the second time the factor is right already
        images = torch.randn(5, 4)
        with guide.watch() as seen:
            network(images)
        assert seen.feature is not None
        losses = {"contrastive": seen.feature.square().sum(), **guide.losses(seen, guide.prepare(taught, 0))}
        changed, norms = guide.balance(losses, seen, "contrastive")
        assert norms["contrastive"].item() == pytest.approx(2 * seen.feature.norm().item(), rel=1e-5)
        assert norms["simreg"].item() == pytest.approx(0.25 * 0.4 * norms["contrastive"].item(), rel=1e-5)
        (found,) = torch.autograd.grad(changed["simreg"], seen.feature)
        assert found.norm().item() == pytest.approx(norms["simreg"].item(), rel=1e-5)
        factor = changed["simreg"].item() / (7.0 * 0.4 * simreg_of(seen.feature, taught.feature))
        assert guide.get_buffer("factor_simreg").item() == pytest.approx(factor, rel=1e-5)


def simreg_of(feature: Tensor, taught: Tensor | None) -> float:
    assert taught is not None
    return float((2 - 2 * nn.functional.cosine_similarity(feature, taught)).mean().detach())

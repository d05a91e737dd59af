"""Sums over many anchors equal those of a table in float64, however they are cut into parts."""

import pytest
import torch
from torch import Tensor

import mgd_ssl.distillation.anchors
from mgd_ssl.distillation.anchors import anchored


def rows_and_anchors(scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    rows = scale * torch.nn.functional.normalize(torch.randn(5, 7, generator=generator), dim=1)
    return rows, torch.nn.functional.normalize(torch.randn(23, 7, generator=generator), dim=1)


@pytest.mark.parametrize("part", [1, 10, 23, 2048])
@pytest.mark.parametrize("scale", [0.1, 5.0, 25.0, 1e4])
def test_sums_and_their_gradient_are_those_of_a_table(part: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mgd_ssl.distillation.anchors, "ROWS_AT_ONCE", part)
    rows, anchors = rows_and_anchors(scale)
    found = anchored(rows.requires_grad_(), anchors.T.contiguous().T)  # as a queue [D, K] is handed over
    factors = torch.arange(1.0, 6.0)
    (factors * found.total).sum().backward()

    exact = rows.detach().double().requires_grad_()
    similarity = exact @ anchors.double().T
    (factors * similarity.logsumexp(dim=1)).sum().backward()
    shares = similarity.detach().softmax(dim=1)
    close = 1e-5 if scale < 1e3 else 5e-3  # rounding of similarities as large as the scale
    pairs = [
        (found.total.detach(), similarity.detach().logsumexp(dim=1)),
        (found.nearest, similarity.detach().amax(dim=1)),
        (found.mean, shares @ anchors.double()),
        (rows.grad, exact.grad),
    ]
    for one, expected in pairs:
        assert one is not None and expected is not None
        torch.testing.assert_close(one.double(), expected, rtol=1e-5, atol=5 * close)
    assert not found.mean.requires_grad and not found.nearest.requires_grad


def test_anchors_may_change_before_the_backward_pass() -> None:
    rows, anchors = rows_and_anchors(5.0)
    expected = torch.autograd.grad(anchored(rows.requires_grad_(), anchors).total.sum(), rows)[0]
    total = anchored(rows, anchors).total.sum()
    anchors.zero_()
    assert torch.equal(torch.autograd.grad(total, rows)[0], expected)

"""Masked padding: costs, margins and losses are those of the maps without it."""

import torch
from torch import Tensor, nn

from mgd_ssl.distillation.term import Seen
from mgd_ssl.mgd.loss import partial_l2
from mgd_ssl.mgd.margin import MeasuredMargin
from mgd_ssl.mgd.matching import matching_cost
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.tasks.detection.padding import PaddedMaps, PaddedSeen, masked, valid_positions

SIZES = torch.tensor([[64, 40], [30, 64]])  # in a batch of 64 x 64, maps of stride 8


def maps(seed: int, channels: int) -> Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def cropped(map_: Tensor, image: int) -> Tensor:
    """What of a map lies on an image."""
    rows, columns = ((8, 5), (4, 8))[image]
    return map_[image : image + 1, :, :rows, :columns]


def test_costs_and_margins_are_of_the_images() -> None:
    s, t, valid = maps(0, 3), maps(1, 6), valid_positions(SIZES, (64, 64), (8, 8))
    (ours,), (theirs,) = masked([s], [valid]), masked([t], [valid])
    expected = sum(matching_cost(cropped(s, i), cropped(t, i)) for i in range(2))
    torch.testing.assert_close(matching_cost(ours, theirs), expected)
    margin, reference = MeasuredMargin(6), MeasuredMargin(6)
    margin.update(theirs)
    for i in range(2):
        reference.update(cropped(t, i))
    torch.testing.assert_close(margin.margin(), reference.margin())


def test_the_loss_and_its_gradient_are_of_the_images() -> None:
    valid = valid_positions(SIZES, (64, 64), (8, 8))
    mgd = MGD([3], [6], norm=lambda channels: nn.Identity())
    mgd.set_assignments([torch.tensor([[0, 3], [4, 1], [5, 2]])])
    term, t = PaddedMaps(mgd), maps(1, 6)
    s = maps(0, 3).requires_grad_()
    loss = term.loss(Seen([s]), term.prepare(PaddedSeen([t], valid=[valid]), 0))
    loss.backward()
    ((target, margin, _),) = mgd.reduce([t])
    expected = sum(partial_l2(cropped(s.detach(), i), cropped(target, i), margin) for i in range(2)) / 2
    torch.testing.assert_close(loss.detach(), torch.as_tensor(expected))
    assert s.grad is not None and not s.grad[~valid.expand_as(s)].any() and s.grad[valid.expand_as(s)].any()
    everywhere = term.loss(Seen([s]), term.prepare(PaddedSeen([t]), 0))
    torch.testing.assert_close(everywhere.detach(), partial_l2(s.detach(), target, margin) / 2)
    assert everywhere > loss

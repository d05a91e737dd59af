"""The terms of a step by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mgd_ssl.tasks.moco import DistilledMoCo
from moco import MoCo


def test_accuracy_is_the_share_of_queries_whose_own_key_is_nearest() -> None:
    moco = MoCo(nn.Sequential(nn.Flatten(), nn.PReLU()), dim=12, queue_size=6, temperature=0.5)
    moco.queue.copy_(torch.eye(12)[:, 2:8])
    # the third query's own key is orthogonal to it, and the first of the queue is the query itself
    im_q, im_k = (F.one_hot(torch.tensor(place), 12).float().view(3, 3, 2, 2) for place in ([0, 1, 2], [0, 1, 9]))
    losses = DistilledMoCo(moco)(im_q, im_k)
    assert losses.accuracy.item() == pytest.approx(2 / 3)
    right, wrong = -math.log(math.exp(2) / (math.exp(2) + 6)), -math.log(1 / (1 + math.exp(2) + 5))
    assert losses.contrastive.item() == pytest.approx((2 * right + wrong) / 3, abs=1e-6)
    assert losses.total.item() == losses.contrastive.item() and losses.distillation.item() == 0


def test_targets_are_wanted_exactly_when_there_is_a_distillation() -> None:
    method = DistilledMoCo(MoCo(nn.Flatten(), dim=12, queue_size=6))
    with pytest.raises(ValueError, match="targets exactly when"):
        method(torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2), [])

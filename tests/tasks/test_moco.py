"""The terms of a step by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mgd_ssl.distillation.guide import Guide
from mgd_ssl.tasks.moco import GuidedMoCo
from moco import MoCo


def plain(moco: MoCo) -> GuidedMoCo:
    """Without a teacher."""
    return GuidedMoCo(moco, Guide(moco.encoder_q))


def test_accuracy_is_the_share_of_queries_whose_own_key_is_nearest() -> None:
    moco = MoCo(nn.Sequential(nn.Flatten(), nn.PReLU()), dim=12, queue_size=6, temperature=0.5)
    moco.queue.copy_(torch.eye(12)[:, 2:8])
    # the third query's own key is orthogonal to it, and the first of the queue is the query itself
    im_q, im_k = (F.one_hot(torch.tensor(place), 12).float().view(3, 3, 2, 2) for place in ([0, 1, 2], [0, 1, 9]))
    output = plain(moco)(im_q, im_k, {})
    assert output.shown["accuracy"].item() == pytest.approx(2 / 3)
    right, wrong = -math.log(math.exp(2) / (math.exp(2) + 6)), -math.log(1 / (1 + math.exp(2) + 5))
    assert output.losses["contrastive"].item() == pytest.approx((2 * right + wrong) / 3, abs=1e-6)
    assert output.total.item() == output.losses["contrastive"].item() and list(output.losses) == ["contrastive"]


def test_targets_are_wanted_exactly_when_there_are_terms() -> None:
    method = plain(MoCo(nn.Sequential(nn.Flatten(), nn.PReLU()), dim=12, queue_size=6))
    with pytest.raises(ValueError, match=r"targets are given for \['mgd'\]: pass those of \[\]"):
        method(torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2), {"mgd": []})

"""BatchNorm over parts of a batch against BatchNorms that see a part each; several processes: test_distributed.py."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mgd_ssl import UserError, pretrain
from mgd_ssl.networks.backbones import build_encoder
from moco import MoCo
from moco.shuffle import permutation, shuffle_batch, unshuffle_batch
from moco.split_norm import SplitBatchNorm2d, split_batch_norms
from tests.runs import rows, tiny

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def images(layout: torch.memory_format, count: int = 12) -> Tensor:
    batch = torch.randn(count, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    return (batch * torch.linspace(1, 3, count).view(-1, 1, 1, 1)).contiguous(memory_format=layout)


def norm() -> nn.BatchNorm2d:
    torch.manual_seed(1)
    made = nn.BatchNorm2d(6, eps=1e-3, momentum=0.3)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    nn.init.normal_(made.get_buffer("running_mean"))
    return made


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_every_part_is_normalised_by_its_own_statistics(layout: torch.memory_format, compiled: bool) -> None:
    one, parts = norm(), images(layout).chunk(3)
    split = SplitBatchNorm2d.of(copy.deepcopy(one), 3)
    if compiled:
        split.compile(backend="aot_eager")
    x = images(layout).requires_grad_()
    out = split(x)
    assert out.is_contiguous(memory_format=layout)
    apart = [copy.deepcopy(one) for _ in parts]
    xs = [part.clone().requires_grad_() for part in parts]
    expected = [bn(part) for bn, part in zip(apart, xs, strict=True)]
    torch.testing.assert_close(out, torch.cat(expected))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (out * weights).sum().backward()
    sum((e * w).sum() for e, w in zip(expected, weights.chunk(3), strict=True)).backward()
    torch.testing.assert_close(x.grad, torch.cat([part.grad for part in xs if part.grad is not None]))
    gradients = [bn.weight.grad for bn in apart if bn.weight.grad is not None]
    torch.testing.assert_close(split.weight.grad, torch.stack(gradients).sum(0))
    for name, value in apart[0].state_dict().items():  # running statistics follow the first part
        torch.testing.assert_close(split.state_dict()[name], value)


def test_evaluation_is_that_of_the_plain_norm() -> None:
    one = norm()
    split = SplitBatchNorm2d.of(copy.deepcopy(one).eval(), 3)
    x = images(torch.channels_last, 7)
    torch.testing.assert_close(split(x), one.eval()(x), rtol=0, atol=0)


def test_names_and_parameters_of_a_network_stay() -> None:
    network = build_encoder("thin_resnet10", 8)
    before = {name: value.data_ptr() for name, value in network.state_dict().items()}
    parameters = [id(p) for p in network.parameters()]
    split_batch_norms(network, 2)
    assert {name: value.data_ptr() for name, value in network.state_dict().items()} == before
    assert [id(p) for p in network.parameters()] == parameters
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 12 and all(isinstance(module, SplitBatchNorm2d) for module in norms)


def test_parts_that_would_not_be_equal_are_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 7 images has no 3 equal parts"):
        SplitBatchNorm2d.of(norm(), 3)(images(torch.channels_last, 7))
    with pytest.raises(ValueError, match="bn_splits is 0"):
        MoCo(nn.Identity(), bn_splits=0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_one_process_shuffles_over_its_parts(layout: torch.memory_format) -> None:
    x, order = images(layout), permutation(12, 5)
    assert shuffle_batch(x, order) is x and unshuffle_batch(x, order) is x
    shuffled = shuffle_batch(x, order, 2)
    assert torch.equal(shuffled, x[order]) and not torch.equal(shuffled, x)
    assert shuffled.is_contiguous(memory_format=layout)
    assert torch.equal(unshuffle_batch(shuffled, order, 2), x)


def test_keys_come_back_in_the_order_of_their_queries() -> None:
    moco = MoCo(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), dim=4, queue_size=8, bn_splits=2)  # no norm in it
    plain = copy.deepcopy(moco)
    plain.bn_splits = 1
    im_q, im_k = torch.randn(2, 8, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(moco(im_q, im_k, 7).logits, plain(im_q, im_k, 7).logits)


def test_a_run_of_one_process_says_that_nothing_is_shuffled(image_folder: Path, tmp_path: Path) -> None:
    short = {"optim": {"epochs": 1}}
    pretrain(**tiny(image_folder, tmp_path / "plain", **short))
    pretrain(**tiny(image_folder, tmp_path / "split", moco={"bn_splits": 4}, **short))
    told = [(tmp_path / name / "log.txt").read_text() for name in ("plain", "split")]
    assert ["BatchNorm is not shuffled" in text for text in told] == [True, False]
    losses = [[row["loss"] for row in rows(tmp_path / name) if row["kind"] == "train"] for name in ("plain", "split")]
    assert losses[0] != losses[1]
    with pytest.raises(UserError, match=r"the 16 images of a process and step cannot be split into moco.bn_splits 3"):
        pretrain(**tiny(image_folder, tmp_path / "odd", moco={"bn_splits": 3}))

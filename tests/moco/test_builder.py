"""MoCo against values computed by hand and by naive loops."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco import MoCo, projection_head
from moco.builder import MoCoOutput
from moco.shuffle import permutation


class OnGPU(nn.Parameter):
    """Says that it is on a GPU, so that what is done there is done here."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


class Scale(nn.Module):
    """Multiplies its input by one number; counts the calls in a buffer, as BatchNorm does."""

    calls: Tensor

    def __init__(self, factor: float, kind: type[nn.Parameter] = nn.Parameter) -> None:
        super().__init__()
        self.factor = kind(torch.tensor([factor], dtype=torch.float64))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images * self.factor


def linear_moco(seed: int = 0, **settings: Any) -> MoCo:
    torch.manual_seed(seed)
    return MoCo(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), **{"dim": 4, "queue_size": 6, **settings})


def two_views(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    views = torch.randn(2, count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return views[0], views[1]


def queries_and_keys(moco: MoCo, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return F.normalize(moco.encoder_q(im_q), dim=1), F.normalize(moco.encoder_k(im_k), dim=1)


@pytest.mark.parametrize("kind", [nn.Parameter, OnGPU])
def test_key_encoder_follows_by_hand_computed_averages(kind: type[nn.Parameter]) -> None:
    moco = MoCo(Scale(1.0, kind), dim=2, queue_size=2, momentum=0.75)
    encoder_q, encoder_k = moco.encoder_q, moco.encoder_k
    assert isinstance(encoder_q, Scale) and isinstance(encoder_k, Scale)
    assert encoder_k.factor.is_cuda == (kind is OnGPU)
    # 0.75 * 1 + 0.25 * 3 = 1.5;  0.75 * 1.5 + 0.25 * -1 = 0.875;  0.75 * 0.875 + 0.25 * 5 = 1.90625
    for query, expected in ((3.0, 1.5), (-1.0, 0.875), (5.0, 1.90625)):
        encoder_q.factor.data.fill_(query)
        moco.update_key_encoder()
        assert encoder_k.factor.item() == expected
        assert encoder_q.factor.item() == query


def test_key_encoder_keeps_its_own_statistics() -> None:
    moco = MoCo(Scale(1.0), dim=2, queue_size=2)
    encoder_q, encoder_k = moco.encoder_q, moco.encoder_k
    assert isinstance(encoder_q, Scale) and isinstance(encoder_k, Scale)
    encoder_q.calls.fill_(7)
    moco.update_key_encoder()
    assert encoder_k.calls.item() == 0


def test_momentum_zero_copies_the_query_encoder() -> None:
    moco = linear_moco(momentum=0.0)
    nn.init.constant_(next(moco.encoder_q.parameters()), 0.5)
    moco.update_key_encoder()
    pairs = zip(moco.encoder_q.parameters(), moco.encoder_k.parameters(), strict=True)
    assert all(torch.equal(query, key) for query, key in pairs)


def test_keys_come_from_the_updated_key_encoder() -> None:
    moco = linear_moco(momentum=0.5)
    nn.init.normal_(next(moco.encoder_q.parameters()))
    averaged = copy.deepcopy(moco.encoder_q)
    with torch.no_grad():
        for parameter, key in zip(averaged.parameters(), moco.encoder_k.parameters(), strict=True):
            parameter.copy_((parameter + key) / 2)
        im_q, im_k = two_views(3)
        expected = F.normalize(averaged(im_k), dim=1)
        assert not torch.allclose(expected, F.normalize(moco.encoder_k(im_k), dim=1))
    torch.testing.assert_close(moco(im_q, im_k).keys, expected)


def test_queue_wraps_around_as_written_out_by_hand() -> None:
    moco = MoCo(nn.Identity(), dim=1, queue_size=6)
    moco.queue.zero_()
    contents = [  # two keys a step, more than two turns
        ([1, 2, 0, 0, 0, 0], 2),
        ([1, 2, 3, 4, 0, 0], 4),
        ([1, 2, 3, 4, 5, 6], 0),
        ([7, 8, 3, 4, 5, 6], 2),
        ([7, 8, 9, 10, 5, 6], 4),
        ([7, 8, 9, 10, 11, 12], 0),
        ([13, 14, 9, 10, 11, 12], 2),
    ]
    for step, (queue, pointer) in enumerate(contents):
        moco.enqueue(torch.tensor([[2.0 * step + 1], [2.0 * step + 2]]))
        assert moco.queue.tolist() == [queue]
        assert moco.queue_ptr.tolist() == [pointer]


def test_keys_become_columns_of_the_queue() -> None:
    moco = linear_moco()
    keys = torch.arange(12.0).view(3, 4)
    moco.enqueue(keys)
    torch.testing.assert_close(moco.queue[:, :3], keys.T)


def test_batch_as_large_as_the_queue_replaces_it() -> None:
    moco = linear_moco()
    moco.enqueue(torch.ones(6, 4))
    moco.enqueue(torch.full((6, 4), 2.0))
    assert (moco.queue == 2).all() and moco.queue_ptr.item() == 0


@pytest.mark.parametrize("count", [4, 5, 12])
def test_batch_that_does_not_divide_the_queue_is_refused(count: int) -> None:
    moco = linear_moco()
    before = moco.queue.clone()
    with pytest.raises(ValueError, match=f"queue size 6 is not a multiple of the global batch {count}"):
        moco.enqueue(torch.ones(count, 4))
    assert torch.equal(moco.queue, before)


def test_logits_and_labels_are_those_of_a_naive_loop() -> None:
    moco = linear_moco(temperature=0.07)
    im_q, im_k = two_views(3)
    output: MoCoOutput = moco(im_q, im_k)
    queries, keys = queries_and_keys(moco, im_q, im_k)
    assert output.logits.shape == (3, 7)
    assert output.labels.tolist() == [0, 0, 0]
    for n in range(3):
        for j in range(7):
            other = keys[n] if j == 0 else moco.queue[:, j - 1]
            expected = sum(float(queries[n, d]) * float(other[d]) for d in range(4)) / 0.07
            assert output.logits[n, j].item() == pytest.approx(expected, abs=1e-5)


def test_logits_are_compared_in_float32_whatever_the_precision_of_the_encoders() -> None:
    moco = linear_moco(temperature=0.07)
    im_q, im_k = two_views(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output: MoCoOutput = moco(im_q, im_k)
        q = torch.nn.functional.normalize(moco.encoder_q(im_q), dim=1)
    assert output.logits.dtype == torch.float32
    torch.testing.assert_close(output.logits[:, 1:], q.float() @ moco.queue / 0.07, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_loss_is_log_of_the_candidates_when_all_keys_are_the_same(temperature: float) -> None:
    moco = MoCo(nn.Sequential(nn.Flatten(), nn.PReLU()), dim=12, queue_size=6, temperature=temperature)
    images = torch.ones(2, 3, 2, 2)
    moco.queue.copy_(F.normalize(torch.ones(12, 6), dim=0))
    output: MoCoOutput = moco(images, images)
    assert F.cross_entropy(output.logits, output.labels).item() == pytest.approx(math.log(6 + 1), abs=1e-6)


def test_loss_of_perfect_keys_against_orthogonal_negatives() -> None:
    moco = MoCo(nn.Sequential(nn.Flatten(), nn.PReLU()), dim=12, queue_size=6, temperature=0.5)
    images = F.one_hot(torch.tensor([0, 0]), 12).float().view(2, 3, 2, 2)
    moco.queue.copy_(torch.eye(12)[:, 1:7])
    output: MoCoOutput = moco(images, images)
    expected = -math.log(math.exp(2) / (math.exp(2) + 6))  # similarity 1 / 0.5 against six times 0
    assert F.cross_entropy(output.logits, output.labels).item() == pytest.approx(expected, abs=1e-6)


def test_forward_and_backward_leave_the_queue_alone() -> None:
    moco = linear_moco()
    queue, pointer = moco.queue.clone(), moco.queue_ptr.clone()
    output: MoCoOutput = moco(*two_views(3))
    F.cross_entropy(output.logits, output.labels).backward()
    assert torch.equal(moco.queue, queue) and torch.equal(moco.queue_ptr, pointer)


def test_gradient_reaches_the_query_encoder_only() -> None:
    moco = linear_moco()
    output: MoCoOutput = moco(*two_views(3))
    F.cross_entropy(output.logits, output.labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in moco.encoder_q.parameters())
    assert all(p.grad is None and not p.requires_grad for p in moco.encoder_k.parameters())
    assert not output.keys.requires_grad


def test_queue_starts_with_unit_vectors_of_the_seed() -> None:
    queue = linear_moco(seed=0).queue
    torch.testing.assert_close(queue.norm(dim=0), torch.ones(6))
    assert torch.equal(queue, linear_moco(seed=1).queue)  # not of the global generator
    torch.manual_seed(0)
    other = MoCo(nn.Identity(), dim=4, queue_size=6, seed=5).queue
    assert not torch.equal(queue, other)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dim": 0}, "dim is 0 and queue_size is 6: both must be at least 1"),
        ({"queue_size": 0}, "dim is 4 and queue_size is 0"),
        ({"momentum": 1.0}, r"momentum is 1\.0: choose a value in \[0, 1\)"),
        ({"momentum": -0.1}, r"momentum is -0\.1"),
        ({"temperature": 0.0}, r"temperature is 0\.0: choose a value above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        linear_moco(**settings)


def test_state_dict_has_the_official_names() -> None:
    encoder = nn.Sequential()
    encoder.add_module("conv1", nn.Conv2d(3, 8, 1))
    encoder.add_module("fc", projection_head(8, 4))
    state = MoCo(encoder, dim=4, queue_size=6).state_dict()
    names = ["conv1.weight", "conv1.bias", "fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"]
    expected = ["queue", "queue_ptr", *(f"encoder_{side}.{name}" for side in "qk" for name in names)]
    assert sorted(state) == sorted(expected)
    assert state["queue"].shape == (4, 6) and state["queue_ptr"].shape == (1,)
    assert state["queue_ptr"].dtype == torch.int64


def test_hidden_width_of_the_head_is_that_of_the_features_unless_given() -> None:
    assert [tuple(p.shape) for p in projection_head(8, 4).parameters()] == [(8, 8), (8,), (4, 8), (4,)]
    assert [tuple(p.shape) for p in projection_head(8, 4, hidden=5).parameters()] == [(5, 8), (5,), (4, 5), (4,)]


def test_permutation_is_one_of_its_seed() -> None:
    orders = [permutation(50, seed) for seed in (0, 1, 2, 0)]
    assert all(order.sort().values.tolist() == list(range(50)) for order in orders)
    assert torch.equal(orders[0], orders[3]) and len({tuple(order.tolist()) for order in orders}) == 3

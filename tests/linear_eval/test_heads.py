"""Heads trained at once against heads trained one by one, by hand and by torch.optim.SGD."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linear_eval.heads import Heads, initial
from linear_eval.protocols import Setting

SETTINGS = [Setting(lr, decay) for lr in (0.01, 0.3, 3.0) for decay in (0.0, 1e-2)]
N, C, D = 16, 5, 7


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(N, D, generator=generator), torch.randint(C, (N,), generator=generator)) for _ in range(count)]


def start() -> tuple[Tensor, Tensor]:
    return initial("uniform", C, D, seed=3)


def factor(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / 12))


def reference(setting: Setting, count: int) -> nn.Linear:
    """One head, trained with autograd and torch.optim.SGD."""
    layer = nn.Linear(D, C)
    weight, bias = start()
    layer.load_state_dict({"weight": weight, "bias": bias})
    optimizer = torch.optim.SGD(layer.parameters(), setting.lr, momentum=0.9, weight_decay=setting.weight_decay)
    for step, (x, y) in enumerate(batches(count)):
        optimizer.param_groups[0]["lr"] = setting.lr * factor(step)
        optimizer.zero_grad()
        F.cross_entropy(layer(x), y).backward()
        optimizer.step()
    return layer


def trained(settings: list[Setting], count: int) -> Heads:
    heads = Heads(*start(), settings, momentum=0.9)
    for step, (x, y) in enumerate(batches(count)):
        heads.step(x, y, factor(step), N)
    return heads


def test_all_heads_at_once_equal_torchs_sgd_one_by_one() -> None:
    heads = trained(SETTINGS, 12)
    for i, setting in enumerate(SETTINGS):
        layer = reference(setting, 12)
        torch.testing.assert_close(heads.weight.view(-1, C, D)[i], layer.weight.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(heads.bias.view(-1, C)[i], layer.bias.detach(), rtol=1e-5, atol=1e-5)


def test_all_heads_at_once_equal_the_same_heads_alone() -> None:
    heads = trained(SETTINGS, 12)
    for i, setting in enumerate(SETTINGS):
        alone = trained([setting], 12)
        torch.testing.assert_close(heads.weight.view(-1, C, D)[i], alone.weight, rtol=1e-5, atol=1e-5)


def test_first_step_by_hand() -> None:
    """From zero weights every class has probability 1/C: the gradient is known."""
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    heads = Heads(torch.zeros(2, 2), torch.zeros(2), [Setting(0.5, 0.0)], momentum=0.9)
    loss = heads.step(x, y, 1.0, 1)
    assert loss.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(heads.weight, torch.tensor([[-0.25, -0.5], [0.25, 0.5]]))
    torch.testing.assert_close(heads.bias, torch.tensor([-0.25, 0.25]))


def test_two_balanced_points_reach_the_closed_form() -> None:
    """Points +-1 with weight decay w: the logit margin m = 2v solves w v = sigmoid(-2v), for weights (v, -v)."""
    decay = 0.05
    x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
    heads = Heads(torch.zeros(2, 1), torch.zeros(2), [Setting(0.5, decay)], momentum=0.9)
    for _ in range(2000):
        heads.step(x, y, 1.0, 2)
    low, high = 0.0, 20.0
    for _ in range(100):
        v = (low + high) / 2
        low, high = (v, high) if 1 / (1 + math.exp(2 * v)) > decay * v else (low, v)
    assert heads.weight.flatten().tolist() == pytest.approx([v, -v], rel=1e-4)


def test_scores_against_a_naive_loop() -> None:
    heads = trained(SETTINGS, 5)
    data = batches(3)
    scores = heads.measure(data)
    for i in range(len(SETTINGS)):
        hits1 = hits5 = 0
        losses = []
        for x, y in data:
            logits = x @ heads.weight.view(-1, C, D)[i].T + heads.bias.view(-1, C)[i]
            for row, label in zip(logits, y.tolist(), strict=True):
                best = row.argsort(descending=True).tolist()
                hits1 += best[0] == label
                hits5 += label in best[:5]
                losses.append(F.cross_entropy(row[None], torch.tensor([label])).item())
        assert scores.top1[i] == pytest.approx(100 * hits1 / (3 * N))
        assert scores.top5[i] == pytest.approx(100 * hits5 / (3 * N)) == pytest.approx(100)
        assert scores.loss[i] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_top_5_of_twelve_classes_is_of_five() -> None:
    """The right class is the best, the second, ... of every row in turn."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 12, generator=generator)
    heads = Heads(torch.eye(12), torch.zeros(12), [Setting(1, 0), Setting(2, 0)], 0.9)
    places = features.argsort(dim=1, descending=True).diagonal()  # row n: the class in place n
    scores = heads.measure([(features[:7], places[:7]), (features[7:], places[7:])])
    assert scores.top1 == pytest.approx([100 / 12] * 2)
    assert scores.top5 == pytest.approx([500 / 12] * 2)


def test_ties_and_broken_heads_score_nothing() -> None:
    flat = Heads(torch.zeros(C, D), torch.zeros(C), [Setting(1, 0)], 0.9)
    assert flat.measure(batches(1)).top1 == [0]
    flat.weight.fill_(math.nan)
    assert flat.measure(batches(1)).top1 == [0]


def test_a_diverging_head_does_not_touch_its_neighbours() -> None:
    heads = trained([Setting(0.1, 0.0), Setting(math.inf, 0.0)], 5)
    assert not heads.weight.view(2, C, D)[1].isfinite().any()
    torch.testing.assert_close(heads.weight.view(2, C, D)[0], trained([Setting(0.1, 0.0)], 5).weight)


def test_start_of_a_head() -> None:
    weight, bias = initial("normal", 50, 400, seed=1)
    assert weight.std().item() == pytest.approx(0.01, rel=0.05) and not bias.any()
    weight, bias = initial("uniform", 50, 400, seed=1)
    assert weight.abs().max() <= 0.05 and weight.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.05)
    assert bias.any()
    assert torch.equal(weight, initial("uniform", 50, 400, seed=1)[0])
    assert not torch.equal(weight, initial("uniform", 50, 400, seed=2)[0])

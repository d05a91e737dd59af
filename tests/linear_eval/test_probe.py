"""The search and its last head on tables: learning, knockout, held-out rows, stopping and going on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from linear_eval.feature_batches import CachedSource, standardising
from linear_eval.heads import Heads, Scores, initial
from linear_eval.probe import Probe, ranking, stages
from linear_eval.protocols import Protocol, Setting
from mgd_ssl.data.order import held_out
from mgd_ssl.errors import TrainingError, UserError
from mgd_ssl.evaluation.features import Features
from mgd_ssl.run.log import RunLog
from moco.keyed import keyed_generator, keyed_seed
from tests.linear_eval.conftest import BASE

CPU = torch.device("cpu")


def table(count: int, seed: int, classes: int = 4, dim: int = 6, noise: float = 0.3) -> Features:
    """Classes around the corners of a cube: separable for little noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=count)
    corners = np.random.default_rng(0).choice([-1.0, 1.0], size=(classes, dim))
    return Features((corners[labels] + noise * generator.standard_normal((count, dim))).astype(np.float32), labels)


def probe(train: Features, val: Features, seed: int = 0, **changes: Any) -> Probe:
    protocol = Protocol(**BASE | changes)
    transform = standardising(train.values, protocol.normalise, CPU)
    sources = [CachedSource(features, transform, CPU) for features in (train, val)]
    return Probe(protocol, seed, 4, 6, train.labels, sources[0], sources[0], sources[1], CPU)


def run(one: Probe, folder: Path, stop_at: int | None = None, save: Callable[[], None] = lambda: None) -> bool:
    folder.mkdir(exist_ok=True)
    with RunLog(folder, one.total_steps, one.finished_steps) as log:
        return one.train(log, lambda: one.finished_steps == stop_at, save)


def test_separable_classes_are_learnt(tmp_path: Path) -> None:
    one = probe(table(400, 1), table(200, 2))
    assert run(one, tmp_path)
    assert one.result().top1[0] > 99 and one.result().top5 == [100]


def test_random_labels_stay_near_chance(tmp_path: Path) -> None:
    train, val = table(400, 1), table(400, 2)
    one = probe(train, Features(val.values, np.random.default_rng(5).integers(4, size=400)))
    run(one, tmp_path)
    assert 15 < one.result().top1[0] < 35


def test_search_equals_training_every_head_alone(tmp_path: Path) -> None:
    """Both rounds and the last training, redone head by head from the seed."""
    train, val = table(120, 1, noise=1.5), table(60, 2, noise=1.5)
    one = probe(train, val)
    run(one, tmp_path)

    protocol = Protocol(**BASE)
    out = held_out(train.labels, 0.25, 0)
    rest = np.setdiff1d(np.arange(120), out)
    mean, deviation = train.values.mean(0), np.sqrt(train.values.var(0, ddof=1) + 1e-5)
    x, y = torch.from_numpy((train.values - mean) / deviation), torch.from_numpy(train.labels)

    def alone(setting: Setting, stage: int, rows: np.ndarray, epochs: float) -> Heads:
        weight, bias = initial("normal", 4, 6, keyed_seed(0, "linear head"))
        heads = Heads(weight, bias, [setting], 0.9)
        steps = round(epochs * (len(rows) // 8))
        for step in range(steps):
            epoch, number = divmod(step, len(rows) // 8)
            order = keyed_generator(keyed_seed(0, "linear order", stage), "order", epoch).permutation(len(rows))
            batch = rows[order[8 * number : 8 * number + 8]]
            heads.step(x[batch], y[batch], protocol.lr_factor(step / steps), 8)
        return heads

    left = protocol.settings
    for stage, (epochs, entering) in enumerate([(1, 2), (1.5, 1)]):
        scores = [alone(setting, stage, rest, epochs).measure([(x[out], y[out])]) for setting in left]
        assert one.rounds[stage]["top1"] == [score.top1[0] for score in scores]
        assert one.rounds[stage]["loss"] == pytest.approx([score.loss[0] for score in scores], rel=1e-4)
        order = sorted(range(len(left)), key=lambda i: (-scores[i].top1[0], scores[i].loss[0]))
        left = [left[i] for i in sorted(order[:entering])]
    assert one.settings == left
    torch.testing.assert_close(
        one.heads.weight, alone(left[0], 2, np.arange(120), 3).weight, rtol=1e-5, atol=1e-5
    )  # fmt: skip


def test_stretched_rounds_without_curvature_are_trainings_with_larger_learning_rates(tmp_path: Path) -> None:
    """Plain SGD does not depend on the basis, so training in another one changes nothing."""
    train, val = table(120, 1, noise=1.5), table(60, 2, noise=1.5)
    rounds = [{"heads": 6, "epochs": 1}]
    stretched = probe(train, val, rounds=rounds, curvature=1e-9)
    larger = probe(train, val, rounds=rounds, lrs=[3 * lr for lr in BASE["lrs"]])  # of 3 epochs
    for one in (stretched, larger):
        run(one, tmp_path / str(id(one)))
    assert stretched.rounds[0]["top1"] == larger.rounds[0]["top1"]
    assert stretched.rounds[0]["loss"] == pytest.approx(larger.rounds[0]["loss"], rel=1e-4)


def test_a_table_that_is_turned_at_once_equals_one_turned_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    features = table(100, 1)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    source = CachedSource(features, standardising(features.values, True, CPU), CPU)
    at_once = source.rotated(rotation)
    monkeypatch.setattr("linear_eval.feature_batches.TURNED_AT_ONCE", 0)
    rows = np.array([3, 99, 0])
    plain, turned = source.take(rows), source.rotated(rotation).take(rows)
    torch.testing.assert_close(turned[0], plain[0] @ rotation)
    torch.testing.assert_close(at_once.take(rows)[0], turned[0])
    assert at_once.take(rows)[1].tolist() == features.labels[rows].tolist()


def test_the_stretched_search_finds_the_learning_rate_that_correlated_features_need(tmp_path: Path) -> None:
    """The classes differ along directions of little variance, so only the largest learning rates get there."""
    generator = np.random.default_rng(0)
    corners = generator.standard_normal((4, 6))

    def draw(count: int) -> Features:
        labels = generator.integers(4, size=count)
        values = corners[labels] + generator.standard_normal((count, 6)) + 30 * generator.standard_normal((count, 1))
        return Features(values.astype(np.float32), labels)

    train, val = draw(1000), draw(500)
    settings: dict[str, Any] = {
        "lrs": [1e-4, 1e-3, 1e-2, 0.1, 1.0],
        "weight_decays": [0.0],
        "epochs": 40,
        "batch_size": 50,
    }
    found = []
    for name, rounds in (("short", [{"heads": 5, "epochs": 1}]), ("whole", [{"heads": 5, "epochs": 40}])):
        one = probe(train, val, **settings, rounds=rounds, curvature=0.1)
        run(one, tmp_path / name)
        found.append(one)
    assert found[0].settings == found[1].settings == [Setting(1.0, 0.0)]
    assert found[0].rounds[0]["top1"][-1] == pytest.approx(found[1].rounds[0]["top1"][-1], abs=5)  # chance is 25
    assert found[1].rounds[0]["top1"][-1] > 60


def test_standardising_against_numpy() -> None:
    values = table(500, 1).values * 7 + 100
    x = standardising(values, False, CPU)(torch.from_numpy(values))
    expected = (values - values.mean(0)) / np.sqrt(values.var(0, ddof=1, dtype=np.float64) + 1e-5)
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-4)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    y = standardising(values, True, CPU)(torch.from_numpy(values))
    expected = (unit - unit.mean(0)) / np.sqrt(unit.var(0, ddof=1, dtype=np.float64) + 1e-5)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-3)


def test_held_out_rows_are_a_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2, 3], [100, 20, 3, 1])
    rows = held_out(labels, 0.1, seed=0)
    assert np.bincount(labels[rows], minlength=4).tolist() == [10, 2, 1, 0]
    assert len(set(rows.tolist())) == len(rows) and (np.diff(rows) > 0).all()
    assert np.array_equal(rows, held_out(labels, 0.1, seed=0))
    assert not np.array_equal(rows, held_out(labels, 0.1, seed=1))
    assert held_out(labels, 0, seed=0).size == 0


def test_nothing_to_hold_out() -> None:
    with pytest.raises(UserError, match="every class has a single training image, so none can be held out"):
        held_out(np.arange(5), 0.1, seed=0)


def test_last_head_sees_the_whole_training_set_and_the_others_do_not() -> None:
    labels = table(100, 1).labels
    out = held_out(labels, 0.25, 0)
    first, second, last = stages(Protocol(**BASE), 100, out)
    assert not set(first.rows) & set(out) and len(first.rows) + len(out) == 100
    assert np.array_equal(first.rows, second.rows) and np.array_equal(last.rows, np.arange(100))
    assert [stage.num_heads for stage in (first, second, last)] == [6, 2, 1]
    per_epoch = len(first.rows) // 8
    assert [stage.steps for stage in (first, second, last)] == [per_epoch, round(1.5 * per_epoch), 3 * 12]
    assert [stage.times for stage in (first, second, last)] == [1, 1, 1]


def test_rounds_have_a_least_number_of_steps_and_no_more_than_the_whole_training() -> None:
    rounds = [
        {"heads": 6, "epochs": 1, "steps": 5},
        {"heads": 4, "epochs": 1, "steps": 20},
        {"heads": 2, "epochs": 1, "steps": 99},
    ]
    found = stages(Protocol(**BASE | {"rounds": rounds, "curvature": 0.1}), 100, np.arange(25))
    assert [stage.steps for stage in found] == [9, 20, 27, 36]  # an epoch has 9, or 12 with what was held out
    assert [stage.times for stage in found] == [3, 1.35, 1, 1]


def test_too_few_images_for_a_batch() -> None:
    with pytest.raises(
        UserError, match=r"has 7 images \(2 are held out\), fewer than the batch of 8 of protocol small"
    ):
        stages(Protocol(**BASE), 9, np.array([1, 2]))


def test_ranking() -> None:
    nan, inf = float("nan"), float("inf")
    scores = Scores([50, 70, 70, 70, 70], [0] * 5, [0.1, nan, 0.5, 0.5, inf])
    assert ranking(scores) == [2, 3, 1, 4, 0]


@pytest.mark.parametrize("curvature", [0.0, 0.1])
@pytest.mark.parametrize("stop_at", [1, 9, 10, 20, 24, 30])
def test_stopped_and_continued_is_bit_for_bit_the_same(stop_at: int, curvature: float, tmp_path: Path) -> None:
    train, val = table(100, 1, noise=1.5), table(60, 2, noise=1.5)
    whole, first, second = (probe(train, val, curvature=curvature) for _ in range(3))
    run(whole, tmp_path / "whole")
    states: list[dict[str, Any]] = []
    assert not run(first, tmp_path / "parts", stop_at, lambda: states.append(first.state()))
    second.load(states[-1])
    assert second.finished_steps == stop_at
    assert run(second, tmp_path / "second")
    for name in ("weight", "bias", "weight_velocity"):
        assert torch.equal(getattr(second.heads, name), getattr(whole.heads, name))
    assert (second.settings, second.rounds) == (whole.settings, whole.rounds)
    last = [json.loads((tmp_path / f / "metrics.jsonl").read_text().splitlines()[-1]) for f in ("whole", "second")]
    assert last[0] == last[1]


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    features = table(64, 1)
    settings: dict[str, Any] = {"lrs": [1e6], "weight_decays": [1.0], "rounds": [], "held_out": 0.0, "epochs": 20}
    with pytest.raises(TrainingError, match=r"the loss of the head with lr 1e\+06 is not finite"):
        run(probe(features, features, **settings), tmp_path)

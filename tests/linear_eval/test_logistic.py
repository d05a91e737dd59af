"""Logistic regression against scipy's in double precision, the choice of C, and a stop between two values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from linear_eval import linear
from linear_eval.feature_batches import CachedSource, Transform
from linear_eval.logistic import Data, LogisticProbe
from linear_eval.protocols import LogisticProtocol, load_protocol
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.features import Features
from mgd_ssl.run.log import RunLog

CPU = torch.device("cpu")
BASE: dict[str, Any] = {
    "solver": "lbfgs", "name": "own", "version": 1, "lowest": -2.0, "highest": 2.0, "count": 5, "iterations": 500,
    "tolerance": 1e-6, "patience": 5, "held_out": 0.2,
}  # fmt: skip


def made(count: int, seed: int, classes: int = 4, dim: int = 6) -> Features:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    means = np.random.default_rng(9).standard_normal((classes, dim))
    return Features((means[labels] + 1.5 * rng.standard_normal((count, dim))).astype(np.float32), labels)


def probe(protocol: LogisticProtocol, train: Features, val: Features, seed: int = 0) -> LogisticProbe:
    sources = (CachedSource(features, Transform(), CPU) for features in (train, val))
    return LogisticProbe(protocol, seed, Data(train.labels, 4, *sources), CPU)


def fitted(found: LogisticProbe, folder: Path, stopping: Callable[[], bool] = lambda: False) -> bool:
    with RunLog(folder, found.total_steps, 0) as log:
        return found.train(log, stopping, lambda: None)


def optimum(features: Features, cost: float) -> tuple[float, np.ndarray]:
    """scikit-learn's objective at its minimum, over C, and the weights with their bias: [4, 7]."""
    x, y = features.values.astype(np.float64), features.labels

    def objective(flat: np.ndarray) -> float:
        weight = flat.reshape(4, 7)
        logits = x @ weight[:, :6].T + weight[:, 6]
        losses = logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]
        return float(losses.sum() + (weight[:, :6] ** 2).sum() / (2 * cost))

    found = minimize(objective, np.zeros(28), method="BFGS", options={"gtol": 1e-7, "maxiter": 2000})
    return float(found.fun), found.x.reshape(4, 7)


@pytest.mark.parametrize("cost", [0.01, 1.0, 100.0])
def test_a_fit_is_scipys(cost: float, tmp_path: Path) -> None:
    train = made(120, 1)
    power = float(np.log10(cost))
    one = LogisticProtocol(**BASE | {"lowest": power, "highest": power, "count": 1})
    found = probe(one, train, made(50, 2))
    assert fitted(found, tmp_path)
    _, weights = optimum(train, cost)
    np.testing.assert_allclose(found.heads.weight.numpy(), weights[:, :6], rtol=2e-2, atol=2e-3)
    # the bias is free up to a constant
    bias = found.heads.bias.numpy()
    np.testing.assert_allclose(bias - bias.mean(), weights[:, 6] - weights[:, 6].mean(), rtol=2e-2, atol=2e-3)
    (setting,) = found.settings
    assert setting.weight_decay == pytest.approx(1 / (120 * cost))


def test_the_best_on_held_out_rows_is_fitted_to_all(tmp_path: Path) -> None:
    train, val = made(200, 3), made(80, 4)
    found = probe(LogisticProtocol(**BASE), train, val, seed=5)
    assert fitted(found, tmp_path) and [round["C"] for round in found.rounds] == pytest.approx([0.01, 0.1, 1, 10, 100])
    judged = found.judged_on
    rest = Features(np.delete(train.values, judged, axis=0), np.delete(train.labels, judged))
    for each in found.rounds:
        _, weights = optimum(rest, each["C"])
        logits = train.values[judged] @ weights[:, :6].T + weights[:, 6]
        right = 100 * (logits.argmax(axis=1) == train.labels[judged]).mean()
        assert each["top1"] == pytest.approx(right, abs=100 / len(judged) + 1e-6)  # one image may stand on the border
    best = min(range(5), key=lambda i: (-found.rounds[i]["top1"], found.rounds[i]["loss"]))
    assert found.best == best and found.settings[0].weight_decay == pytest.approx(1 / (200 * found.costs[best]))


def test_larger_values_are_left_out_when_they_get_worse(tmp_path: Path) -> None:
    noise = Features(made(60, 6).values, np.random.default_rng(0).integers(4, size=60))
    found = probe(LogisticProtocol(**BASE | {"patience": 1, "lowest": -4.0, "count": 7}), noise, made(20, 7))
    assert fitted(found, tmp_path)
    assert len(found.rounds) == found.best + 2 or len(found.rounds) == 7
    assert len(found.rounds) < 7


def test_a_stopped_one_ends_with_the_same_head(tmp_path: Path) -> None:
    train, val, protocol = made(150, 8), made(40, 9), LogisticProtocol(**BASE)
    whole, stopped, resumed = (probe(protocol, train, val) for _ in range(3))
    for name in "abc":
        (tmp_path / name).mkdir()
    assert fitted(whole, tmp_path / "a")
    answers = iter([False, True])
    assert not fitted(stopped, tmp_path / "b", lambda: next(answers))
    assert stopped.finished_steps == 2
    resumed.load(stopped.state())
    assert fitted(resumed, tmp_path / "c")
    assert torch.equal(resumed.heads.weight, whole.heads.weight) and resumed.rounds == whole.rounds
    assert resumed.result() == whole.result()


def test_a_whole_evaluation(image_folder: Path, tmp_path: Path) -> None:
    evaluation, file = linear(
        checkpoint="random:thin_resnet10", data=image_folder, out=tmp_path / "out", protocol="logreg", workers=0,
        image_size=32, runtime={"device": "cpu", "threads": 1},
    )  # fmt: skip
    assert file.name == "evaluation_linear_logreg_random_thin_resnet10_0.json" and 0 <= evaluation.mean("top1") <= 100
    assert (
        "logistic regression by L-BFGS" in evaluation.protocol and "C of 45 values 1e-6 to 1e5" in evaluation.protocol
    )
    result = json.loads(next((tmp_path / "out").glob("linear_*/result.json")).read_text())
    assert result["lr"] == 0 and len(result["rounds"]) >= 9


def test_the_protocol_is_dinov2s_range_and_bad_files_are_told(tmp_path: Path) -> None:
    protocol = load_protocol("logreg")
    assert isinstance(protocol, LogisticProtocol)
    np.testing.assert_allclose(protocol.costs, 10 ** np.linspace(-6, 5, 45), rtol=1e-6)
    text = (Path(__file__).parents[2] / "linear_eval" / "protocols" / "logreg.toml").read_text()
    (tmp_path / "own.toml").write_text(text.replace("patience = 8", "patience = 0"))
    with pytest.raises(UserError, match="patience is 0: set it to 1 or more"):
        load_protocol(str(tmp_path / "own.toml"))
    (tmp_path / "own.toml").write_text(text.replace("patience = 8", "patience = 9"))
    with pytest.raises(UserError, match="is named 'logreg' but differs from that protocol"):
        load_protocol(str(tmp_path / "own.toml"))

"""k-NN against a plain loop over the queries, and against plain torch."""

import math
from collections import defaultdict

import faiss
import numpy as np
import pytest
import torch

from mgd_ssl.data.order import few_labels
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation import knn, search
from mgd_ssl.evaluation.accuracy import Accuracy
from mgd_ssl.evaluation.features import Features
from mgd_ssl.evaluation.knn import knn_accuracies, knn_accuracy, prefix_votes, searched


def features(count: int, num_classes: int, seed: int, dim: int = 8) -> Features:
    """Noisy unit vectors around one direction a class."""
    centres = np.random.default_rng(0).normal(size=(num_classes, dim))
    generator = np.random.default_rng([1, seed])
    labels = generator.integers(0, num_classes, count)
    values = centres[labels] + 1.5 * generator.normal(size=(count, dim))
    return Features((values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32), labels)


def naive(bank: Features, queries: Features, k: int, temperature: float) -> tuple[float, float]:
    top1 = top5 = 0
    for value, label in zip(queries.values.astype(np.float64), queries.labels, strict=True):
        similarity = [float(other @ value) for other in bank.values.astype(np.float64)]
        nearest = sorted(range(len(similarity)), key=lambda i: -similarity[i])[:k]
        votes: dict[int, float] = defaultdict(float)
        for i in nearest:
            votes[int(bank.labels[i])] += math.exp(similarity[i] / temperature)
        num_classes = max(bank.labels.max(), queries.labels.max()) + 1
        ranked = sorted(range(num_classes), key=lambda c: (-votes[c], c))
        top1 += ranked[0] == label
        top5 += votes[int(label)] > 0 and int(label) in ranked[:5]
    return 100 * top1 / len(queries.labels), 100 * top5 / len(queries.labels)


@pytest.mark.parametrize("num_classes", [2, 5, 12])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.5), (200, 0.07), (300, 10.0)])
def test_accuracy_is_that_of_a_plain_loop(num_classes: int, k: int, temperature: float) -> None:
    bank, queries = features(300, num_classes, seed=1), features(90, num_classes, seed=2)
    accuracy = knn_accuracy(bank, queries, k, temperature)
    assert tuple(accuracy) == pytest.approx(naive(bank, queries, k, temperature))
    assert 0 < accuracy.top1 <= accuracy.top5 <= 100
    assert accuracy.top5 == 100 or num_classes > 5 or k < 200  # a class nobody votes for is no hit


def test_predictions_are_those_of_plain_torch() -> None:
    bank, queries = features(900, 12, seed=11, dim=32), features(250, 12, seed=12, dim=32)
    ks, temperatures = (1, 10, 20, 100, 200, 900), (0.02, 0.07, 1.0)
    similarity, neighbours = (torch.from_numpy(queries.values) @ torch.from_numpy(bank.values).T).topk(max(ks))
    assert len(similarity.unique()) > 0.99 * similarity.numel()  # next to no ties
    labels = torch.from_numpy(bank.labels)[neighbours]
    ours = [np.concatenate(parts) for parts in zip(*searched(bank, queries, max(ks), None), strict=True)]
    accuracies = knn_accuracies(bank, queries, ks, temperatures)
    for temperature in temperatures:
        for k, votes in prefix_votes(ours[0], bank.labels[ours[1]], 12, ks, temperature):
            weights = (similarity[:, :k].double() / temperature).exp()
            plain = torch.zeros(250, 12, dtype=torch.float64).scatter_add_(1, labels[:, :k], weights)
            predicted = plain.argmax(dim=1)
            assert votes.argmax(axis=1).tolist() == predicted.tolist()
            right = predicted == torch.from_numpy(queries.labels)
            assert accuracies[k, temperature].top1 == pytest.approx(100 * right.double().mean().item())


def test_many_k_in_one_pass_are_those_of_one_k_each() -> None:
    bank, queries = features(300, 9, seed=13), features(80, 9, seed=14)
    together = knn_accuracies(bank, queries, [50, 1, 7, 50], [0.07, 0.5])
    assert list(together) == [(k, t) for k in (1, 7, 50) for t in (0.07, 0.5)]
    for (k, t), accuracy in together.items():
        assert knn_accuracy(bank, queries, k, t) == accuracy


def test_result_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = features(200, 9, seed=3), features(101, 9, seed=4)
    whole = knn_accuracies(bank, queries, [1, 20], [0.07])
    for chunk in (1, 10, 100, 101):
        monkeypatch.setattr(knn, "CHUNK", chunk)
        for name in ("CPU_CHUNK", "CPU_BANK_CHUNK"):
            monkeypatch.setattr(search, name, chunk)
            assert knn_accuracies(bank, queries, [1, 20], [0.07]) == whole


def test_every_image_is_its_own_nearest_neighbour() -> None:
    bank = features(150, 10, seed=5)
    assert knn_accuracy(bank, bank, 1, 0.07) == Accuracy(100.0, 100.0)


def test_closer_neighbours_outvote_more_of_them_at_a_low_temperature() -> None:
    bank = Features(np.array([[1, 0], [0.6, 0.8], [0.6, -0.8]], dtype=np.float32), np.array([0, 1, 1]))
    query = Features(np.array([[1, 0]], dtype=np.float32), np.array([0]))
    assert knn_accuracy(bank, query, 3, 0.07).top1 == 100
    assert knn_accuracy(bank, query, 3, 10.0).top1 == 0


def test_a_label_the_bank_does_not_hold_is_simply_missed() -> None:
    bank = features(50, 3, seed=6)
    queries = Features(bank.values[:10], np.full(10, 7))
    assert knn_accuracy(bank, queries, 5, 0.07).top1 == 0


def test_large_similarities_over_a_small_temperature_stay_finite() -> None:
    bank, queries = features(100, 4, seed=7), features(30, 4, seed=8)
    assert tuple(knn_accuracy(bank, queries, 5, 0.002)) == pytest.approx(naive(bank, queries, 5, 0.002))


def test_k_above_the_bank_is_refused() -> None:
    bank = features(10, 2, seed=9)
    assert knn_accuracy(bank, bank, 10, 0.07).top5 == 100
    with pytest.raises(UserError, match="k is 11 but only 10 images vote: choose a smaller k"):
        knn_accuracy(bank, bank, 11, 0.07)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    whole, broken = features(20, 2, seed=10), features(20, 2, seed=10)
    broken.values[3, 1] = value
    with pytest.raises(UserError, match="a voting image has features that are not finite"):
        knn_accuracy(broken, whole, 3, 0.07)
    with pytest.raises(UserError, match="a classified image has features that are not finite"):
        knn_accuracy(whole, broken, 3, 0.07)


def test_huge_similarities_over_a_tiny_temperature_neither_overflow_nor_vanish() -> None:
    votes = next(v for _, v in prefix_votes(np.array([[1.0, -1.0]]), np.array([[0, 1]]), 3, [2], 1e-6))
    assert votes[0, 0] == 1 and votes[0, 1] > 0 and votes[0, 2] == 0


def test_few_labels_are_a_function_of_the_seed_and_stratified() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [3, 40, 200, 1000]))
    one, ten = few_labels(labels, 0.01, seed=0), few_labels(labels, 0.1, seed=0)
    assert np.bincount(labels[one]).tolist() == [1, 1, 2, 10]
    assert np.bincount(labels[ten]).tolist() == [1, 4, 20, 100]
    assert (np.diff(ten) > 0).all() and set(one) <= set(ten)
    assert (few_labels(labels, 0.1, seed=0) == ten).all()
    assert set(few_labels(labels, 0.1, seed=1)) != set(ten)


def test_a_process_has_one_set_of_resources_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    bank, queries = features(60, 3, seed=1), features(17, 3, seed=2)
    expected = knn_accuracy(bank, queries, 4, 0.1)

    def resources() -> object:
        made.append(object())
        return made[-1]

    def knn_gpu(given: object, queries: np.ndarray, bank: np.ndarray, k: int, **options: object) -> object:
        assert given is made[0]
        return faiss.knn(queries, bank, k, metric=faiss.METRIC_INNER_PRODUCT)

    monkeypatch.setattr(faiss, "StandardGpuResources", resources, raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    monkeypatch.setattr(search, "_faiss_gpu", lambda device: faiss)
    monkeypatch.setattr(search, "GPU_CHUNK", 5)
    search._gpu_resources.cache_clear()
    assert knn_accuracy(bank, queries, 4, 0.1, torch.device("cuda", 0)) == expected
    assert len(made) == 1
    search._gpu_resources.cache_clear()

"""Nearest neighbours by faiss and by torch, and which of them is taken."""

import importlib.util
import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mgd_ssl.evaluation import search


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    search.found_faiss.cache_clear()
    yield
    search.found_faiss.cache_clear()


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)


@pytest.mark.parametrize("without_faiss", [False, True])
def test_neighbours_are_those_of_a_full_sort(without_faiss: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if without_faiss:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(search, "CPU_BANK_CHUNK", 32)  # many parts are merged
        monkeypatch.setattr(search, "CPU_CHUNK", 7)
    bank, queries = rows(211, 0), rows(19, 1)
    scores = queries.astype(np.float64) @ bank.T.astype(np.float64)
    order = np.argsort(-scores, axis=1)
    for k in (1, 40, 211):
        similarity, neighbours = search.nearest(bank, queries, k, torch.device("cpu"))
        assert np.array_equal(neighbours, order[:, :k])
        np.testing.assert_allclose(similarity, np.take_along_axis(scores, order[:, :k], axis=1), rtol=1e-5, atol=1e-5)


def test_two_packages_of_faiss_are_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(search, "installed", lambda package: True)
    monkeypatch.setattr(logging.getLogger("mgd_ssl"), "propagate", True)
    with caplog.at_level(logging.WARNING, "mgd_ssl"):
        assert search.found_faiss() is not None
    assert "faiss-cpu and faiss-gpu are both installed" in caplog.text

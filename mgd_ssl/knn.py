"""Weighted k-NN classification of frozen features, exact, through faiss.

Protocol of section 3.4 of https://arxiv.org/abs/1805.01978: cosine similarity, and a neighbour votes with
exp(similarity / T).
"""

from typing import NamedTuple

import faiss
import numpy as np
import torch

from mgd_ssl.errors import UserError
from mgd_ssl.features import Features

CHUNK = 4096  # queries searched and counted at a time


class Accuracy(NamedTuple):
    """In percent."""

    top1: float
    top5: float


def knn_accuracy(bank: Features, queries: Features, k: int, temperature: float) -> Accuracy:
    """Classify queries by the votes of their k nearest neighbours.

    Args:
        bank: features that vote.
        queries: features that are classified, labelled alike.
        k: neighbours.
        temperature: T of the votes.

    Raises:
        UserError: when k exceeds the bank or a feature is not finite.
    """
    if k > len(bank.labels):
        raise UserError(f"k is {k} but only {len(bank.labels)} images vote: choose a smaller k")
    for features, name in ((bank, "voting"), (queries, "classified")):
        if not np.isfinite(features.values).all():
            raise UserError(f"a {name} image has features that are not finite: the weights are broken")
    index = _index(bank.values)
    num_classes = int(max(bank.labels.max(), queries.labels.max())) + 1
    hits = np.zeros(2)
    for start in range(0, len(queries.labels), CHUNK):
        labels = queries.labels[start : start + CHUNK]  # [q]
        similarity, neighbours = index.search(queries.values[start : start + CHUNK], k)  # [q, k] both
        votes = np.zeros((len(labels), num_classes))
        rows = np.arange(len(labels))[:, None]
        np.add.at(votes, (rows, bank.labels[neighbours]), np.exp(similarity.astype(np.float64) / temperature))
        ranked = np.argsort(-votes, axis=1, kind="stable")[:, :5]  # [q, 5]
        hits += (ranked[:, 0] == labels).sum(), (ranked == labels[:, None]).any(axis=1).sum()
    return Accuracy(*(100 * hits / len(queries.labels)).tolist())  # builtins: they go into the checkpoint


def _index(values: np.ndarray) -> faiss.Index:
    """Exact inner-product index over [n, d], on the GPU where faiss has one."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    index: faiss.Index = faiss.IndexFlatIP(values.shape[1])
    if hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), torch.cuda.current_device(), index)
    index.add(values)
    return index

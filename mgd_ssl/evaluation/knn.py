"""Weighted k-NN classification of frozen features, exact.

Protocol of section 3.4 of https://arxiv.org/abs/1805.01978: cosine similarity, and a neighbour votes with
exp(similarity / T).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.accuracy import Accuracy
from mgd_ssl.evaluation.features import Features
from mgd_ssl.evaluation.search import nearest, queries_at_once
from moco.dist import rank, sum_over_ranks, world_size

CHUNK = 1024  # queries counted at a time: their votes are [CHUNK, classes] doubles
LEAST_EXPONENT = -700.0  # exp of less is no positive double


def knn_accuracy(
    bank: Features, queries: Features, k: int, temperature: float, device: torch.device | None = None
) -> Accuracy:
    """`knn_accuracies` of one k and one temperature."""
    return knn_accuracies(bank, queries, [k], [temperature], device)[k, temperature]


def knn_accuracies(
    bank: Features,
    queries: Features,
    ks: Sequence[int],
    temperatures: Sequence[float],
    device: torch.device | None = None,
) -> dict[tuple[int, float], Accuracy]:
    """Classify queries by the votes of their k nearest neighbours, for every k and T from one search.

    To be called on all ranks with the same features: each classifies its part of the queries against the whole bank,
    and the hits are summed. Sharding the bank instead would need every rank's k neighbours of every query to be
    exchanged and merged; this exchanges a few integers, and costs each rank the memory of the bank.

    A class is a hit in the top 5 only if somebody voted for it. Equal votes are settled by the class's index.

    Args:
        bank: features that vote.
        queries: features that are classified, labelled alike.
        ks: numbers of neighbours.
        temperatures: T of the votes.
        device: where to search; None: on a GPU where faiss has one.

    Returns:
        (k, T) -> accuracy, equal on all ranks.

    Raises:
        UserError: when k exceeds the bank or a feature is not finite.
    """
    ks = sorted(set(ks))
    if ks[-1] > len(bank.labels):
        raise UserError(f"k is {ks[-1]} but only {len(bank.labels)} images vote: choose a smaller k")
    for features, name in ((bank, "voting"), (queries, "classified")):
        if not all(np.isfinite(features.values[i : i + CHUNK]).all() for i in range(0, len(features.labels), CHUNK)):
            raise UserError(f"a {name} image has features that are not finite: the weights are broken")
    num_classes = int(max(bank.labels.max(), queries.labels.max())) + 1
    hits = {(k, t): np.zeros(2, dtype=np.int64) for k in ks for t in temperatures}
    mine = Features(queries.values[rank() :: world_size()], queries.labels[rank() :: world_size()])
    for similarity, neighbours, labels in searched(bank, mine, ks[-1], device):
        for t in temperatures:
            for k, votes in prefix_votes(similarity, bank.labels[neighbours], num_classes, ks, t):
                hits[k, t] += _hits(votes, labels)
    total = sum_over_ranks(torch.from_numpy(np.stack(list(hits.values()))))  # [rows, 2]
    percent = (100 * total.double() / len(queries.labels)).tolist()  # builtins: they go into the checkpoint
    return {row: Accuracy(*values) for row, values in zip(hits, percent, strict=True)}


def prefix_votes(
    similarity: np.ndarray, labels: np.ndarray, num_classes: int, ks: Sequence[int], temperature: float
) -> Iterator[tuple[int, np.ndarray]]:
    """Votes for every class of the nearest k neighbours, for rising k; the same array, added to.

    Votes are relative to the nearest neighbour's, which changes no order and lets no exponential overflow.

    Args:
        similarity: [q, K] of the neighbours, falling.
        labels: [q, K] of the neighbours.
        num_classes: C.
        ks: rising, at most K.
        temperature: T.

    Yields:
        k and votes [q, C].
    """
    exponent = (similarity - similarity[:, :1]).astype(np.float64) / temperature
    weights = np.exp(np.maximum(exponent, LEAST_EXPONENT))  # [q, K]
    cells = np.arange(len(labels))[:, None] * num_classes + labels  # [q, K] where each vote goes
    votes = np.zeros((len(labels), num_classes))
    start = 0
    for k in ks:
        here = np.s_[:, start:k]
        counted = np.bincount(cells[here].ravel(), weights[here].ravel(), minlength=votes.size)
        votes += counted.reshape(votes.shape)
        start = k
        yield k, votes


def protocol(k: int, temperature: float, voting: str, classified: int, image_size: int) -> str:
    """What a number means, in one line."""
    return f"k-NN k={k} T={temperature}, {voting} voting and {classified} classified images, centre crop {image_size}"


def _hits(votes: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """How many of the labels [q] are first, and among the first five, by their votes [q, C]."""
    own = np.take_along_axis(votes, labels[:, None], axis=1)  # [q, 1]
    ahead = np.count_nonzero(votes > own, axis=1)
    # equal votes for a class of lower index come first; rare, so looked for only where votes are equal
    (tied,) = np.nonzero(np.count_nonzero(votes == own, axis=1) > 1)
    lower = np.arange(votes.shape[1]) < labels[tied, None]
    ahead[tied] += np.count_nonzero((votes[tied] == own[tied]) & lower, axis=1)
    voted = own[:, 0] > 0
    return int((voted & (ahead == 0)).sum()), int((voted & (ahead < 5)).sum())


def searched(
    bank: Features, queries: Features, k: int, device: torch.device | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Similarity [q, k] and index [q, k] of the nearest neighbours, and labels [q], at most CHUNK queries at a time."""
    size = queries_at_once(device, k)
    for start in range(0, len(queries.labels), size):
        labels = queries.labels[start : start + size]
        values = np.ascontiguousarray(queries.values[start : start + size])
        similarity, neighbours = nearest(bank.values, values, k, device)
        for i in range(0, len(labels), CHUNK):
            yield similarity[i : i + CHUNK], neighbours[i : i + CHUNK], labels[i : i + CHUNK]

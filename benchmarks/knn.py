"""The search of `mgd-ssl knn` and its votes against torch's matmul and topk, in one interleaved run.

    python benchmarks/knn.py --threads 2

Both sides get the same L2-normalised features. `torch` is the plain way: similarities of a chunk of queries with the
whole bank, then their topk. `faiss` is what the command runs: the search alone, and with the votes for every k.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table

from mgd_ssl.evaluation.features import Features
from mgd_ssl.evaluation.knn import knn_accuracies, searched


def main(
    bank: int = 100_000,
    dim: int = 512,
    queries: int = 10_000,
    k: tuple[int, ...] = (1, 10, 20, 100, 200),
    classes: int = 1000,
    torch_chunk: tuple[int, ...] = (256, 1024),
    rounds: int = 5,
    threads: int = 2,
) -> None:
    """Print medians of the seconds and their ratios; the same as JSON on the last line.

    Args:
        bank: voting images.
        dim: of the features.
        queries: classified images.
        k: numbers of neighbours; the largest is searched.
        classes: of the labels.
        torch_chunk: queries multiplied with the bank at a time; the faster one counts.
        rounds: each runs all variants one after the other.
        threads: of faiss and torch.
    """
    torch.set_num_threads(threads)
    voting, classified = random_features(bank, dim, classes, 0), random_features(queries, dim, classes, 1)
    device = torch.device("cpu")
    work: dict[str, Callable[[], object]] = {
        f"torch_chunk_{size}": lambda size=size: torch_search(voting, classified, max(k), size)  # type: ignore[misc]
        for size in torch_chunk
    }
    work["faiss"] = lambda: [None for _ in searched(voting, classified, max(k), device)]
    work["faiss_and_votes"] = lambda: knn_accuracies(voting, classified, k, [0.07], device)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    report(seconds, f"{queries} queries, bank {bank} x {dim}, k = {max(k)}, {threads} threads")


def random_features(count: int, dim: int, classes: int, seed: int) -> Features:
    """Random directions with random labels."""
    generator = torch.Generator().manual_seed(seed)
    values = F.normalize(torch.randn(count, dim, generator=generator), dim=1)
    return Features(values.numpy(), torch.randint(classes, (count,), generator=generator).numpy())


def torch_search(bank: Features, queries: Features, k: int, size: int) -> list[np.ndarray]:
    """Indices of the nearest neighbours by matmul and topk."""
    columns = torch.from_numpy(bank.values).T
    chunks = torch.from_numpy(queries.values).split(size)
    return [(chunk @ columns).topk(k, dim=1).indices.numpy() for chunk in chunks]


def report(seconds: dict[str, list[float]], title: str) -> None:
    """Table and JSON of medians; ratios are medians of the rounds' own ratios to the faster torch variant."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = min((name for name in seconds if name.startswith("torch")), key=medians.__getitem__)
    table = Table("what", "median seconds", f"{fastest} / this", title=title)
    result: dict[str, float] = {}
    for name, values in seconds.items():
        ratio = ratio_of(seconds[fastest], values)
        table.add_row(name, f"{medians[name]:.2f}", f"{ratio:.2f}")
        result |= {name: round(medians[name], 3), f"{name}_speedup": round(ratio, 3)}
    Console().print(table)
    print(json.dumps({"title": title, **result}))


def ratio_of(reference: Sequence[float], values: Sequence[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(reference, values, strict=True))


if __name__ == "__main__":
    tyro.cli(main)

"""The search of `mgd-ssl knn` and its votes against torch's matmul and topk, in one interleaved run.

    python -m benchmarks.knn --threads 2

Both sides get the same L2-normalised features. `torch` is the plain way: similarities of a chunk of queries with the
whole bank, then their topk. `faiss` is what the command runs: the search alone, and with the votes for every k.
"""

from collections import deque
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.table import Table

from mgd_ssl.bench.tables import show
from mgd_ssl.bench.timing import Times, Work, compared
from mgd_ssl.evaluation.features import Features
from mgd_ssl.evaluation.knn import knn_accuracies, searched

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Config:
    """Print medians of the seconds and their ratios; the same as JSON on the last line."""

    bank: int = 100_000
    """Voting images."""
    dim: int = 512
    """Of the features."""
    queries: int = 10_000
    """Classified images."""
    k: tuple[int, ...] = (1, 10, 20, 100, 200)
    """Numbers of neighbours; the largest is searched."""
    classes: int = 1000
    """Of the labels."""
    torch_chunk: tuple[int, ...] = (256, 1024)
    """Queries multiplied with the bank at a time; the faster one counts."""
    rounds: int = 5
    """Each runs all variants one after the other."""
    threads: int = 2
    """Of faiss and torch."""


def main(config: Config) -> None:
    """Measure and print."""
    torch.set_num_threads(config.threads)
    voting = random_features(config.bank, config.dim, config.classes, 0)
    classified = random_features(config.queries, config.dim, config.classes, 1)
    nearest = max(config.k)
    work: dict[str, Work] = {
        f"torch_chunk_{size}": partial(torch_search, voting, classified, nearest, size) for size in config.torch_chunk
    }
    work["faiss"] = lambda: deque(searched(voting, classified, nearest, CPU), maxlen=0)
    work["faiss_and_votes"] = lambda: knn_accuracies(voting, classified, config.k, [0.07], CPU)
    sizes = f"{config.queries} queries, bank {config.bank} x {config.dim}, k = {nearest}, {config.threads} threads"
    report(compared(work, config.rounds, warmup=0), sizes)


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


def report(times: Times, title: str) -> None:
    """Table and JSON of medians; ratios are medians of the rounds' own ratios to the faster torch variant."""
    fastest = min((name for name in times.seconds if name.startswith("torch")), key=times.median)
    table = Table("what", "median seconds", f"{fastest} / this", title=title)
    result: dict[str, float] = {}
    for name in times.seconds:
        median, ratio = times.median(name), times.ratio(fastest, name)
        table.add_row(name, f"{median:.2f}", f"{ratio:.2f}")
        result |= {name: round(median, 3), f"{name}_speedup": round(ratio, 3)}
    show(table, {"title": title, **result})


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.knn"))

"""The one timing harness: interleaved rounds, medians."""

import statistics
import time
from collections.abc import Callable

import torch

from mgd_ssl.run.runtime import Runtime


def timed(work: Callable[[], object], runtime: Runtime) -> float:
    """Seconds of one call, the device's work included."""
    started = time.perf_counter()
    work()
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def interleaved(work: dict[str, Callable[[], object]], rounds: int, runtime: Runtime) -> dict[str, float]:
    """Median seconds of each, run one after the other, round by round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    repeats = 20 if runtime.device.type == "cuda" else 1  # to wait for a GPU takes longer than some of this

    def repeated(call: Callable[[], object]) -> Callable[[], object]:
        return lambda: [call() for _ in range(repeats)]

    for number in range(1 + rounds):
        for name, call in work.items():
            took = timed(repeated(call), runtime) / repeats
            if number:
                seconds[name].append(took)
    return {name: statistics.median(times) for name, times in seconds.items()}

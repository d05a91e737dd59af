"""The one timing harness: calls in interleaved rounds, compared by medians and by the rounds' own ratios."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Clock = Callable[[], float]  # seconds since some moment
Work = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)
T = TypeVar("T")


def clock_of(device: torch.device) -> Clock:
    """The wall's clock, read once the device has done what it was given."""

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def repeats_on(device: torch.device) -> int:
    """Calls between two looks at the clock: each look waits for a GPU, which then has nothing to do for a while."""
    return 20 if device.type == "cuda" else 1


def timed(work: Callable[[], T], clock: Clock = time.perf_counter) -> tuple[float, T]:
    """Seconds of one call, and what it returned."""
    started = clock()
    result = work()
    return clock() - started, result


def interleaved(measurements: Mapping[Name, Callable[[], T]], rounds: int, warmup: int = 1) -> dict[Name, list[T]]:
    """What each measurement gave in every round; in a round all are made, one after the other.

    What else the machine does then falls on all of them alike.

    Args:
        measurements: by name, in the order of a round.
        rounds: that count.
        warmup: rounds before them that do not.
    """
    found: dict[Name, list[T]] = {name: [] for name in measurements}
    for number in range(warmup + rounds):
        for name, measure in measurements.items():
            value = measure()
            if number >= warmup:
                found[name].append(value)
    return found


@dataclass(frozen=True)
class Times:
    """Seconds in every round, by name."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """Over the rounds."""
        return statistics.median(self.seconds[name])

    def ratios(self, name: str, reference: str) -> list[float]:
        """How many times as long as the reference it took, in every round."""
        return [one / other for one, other in zip(self.seconds[name], self.seconds[reference], strict=True)]

    def ratio(self, name: str, reference: str) -> float:
        """Median of the rounds' own ratios, which what slows a whole round does not change."""
        return statistics.median(self.ratios(name, reference))


def compared(
    work: Mapping[str, Work], rounds: int, warmup: int = 1, clock: Clock = time.perf_counter, repeats: int = 1
) -> Times:
    """Time calls in interleaved rounds.

    Args:
        work: calls by name.
        rounds: that count.
        warmup: rounds before them that do not.
        clock: that times them.
        repeats: calls between two looks at the clock, for calls that are short beside a look.
    """

    def seconds(call: Work) -> Callable[[], float]:
        def repeated() -> None:
            for _ in range(repeats):
                call()

        return lambda: timed(repeated, clock)[0] / repeats

    return Times(interleaved({name: seconds(call) for name, call in work.items()}, rounds, warmup))

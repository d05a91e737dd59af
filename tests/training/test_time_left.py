"""The time a run still takes, against simulated runs whose clock is known."""

import random

import pytest

from mgd_ssl.training.time_left import TimeLeft, clock_face


class Clock:
    """Seconds, set by hand."""

    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


def simulated(step_seconds: float, first: float, matching: set[int], knn: float) -> list[tuple[float | None, float]]:
    """Estimates after every step of 10 epochs of 20 steps, each with the true time left."""
    clock, told = Clock(), list[tuple[float | None, float]]()
    left = TimeLeft(200, 5, clock)
    for step in range(200):
        if step % 20 == 0:
            if step // 20 in matching:
                with left.event("matching"):
                    clock.now += 40
            with left.event("k-NN"):
                clock.now += knn
        clock.now += first if step < 5 else step_seconds
        left.finished(step + 1)
        epochs = range(-(-(step + 1) // 20), 10)
        to_come = {"matching": len(matching.intersection(epochs)), "k-NN": len(epochs) + 1}
        told.append((left.seconds(step + 1, to_come), clock.now))
    end = clock.now + knn
    return [(estimate, end - now) for estimate, now in told]


@pytest.mark.parametrize("seed", range(5))
def test_the_estimate_is_the_time_the_rest_takes(seed: int) -> None:
    draw = random.Random(seed)
    matching = {0, *draw.sample(range(1, 10), 4)}
    told = simulated(draw.uniform(1, 9), draw.uniform(10, 300), matching, draw.uniform(0, 200))
    assert [estimate for estimate, _ in told[:9]] == [None] * 9  # the slow first steps count for nothing
    known = [(estimate, true) for estimate, true in told if estimate is not None]
    assert len(known) > 170
    for estimate, true in known:
        assert estimate == pytest.approx(true, rel=1e-9, abs=1e-3)


def test_nothing_is_told_before_enough_was_measured() -> None:
    told = simulated(0.01, 60.0, {0}, 0.0)
    assert all(estimate is None for estimate, _ in told)  # 2 seconds in all


def test_an_event_of_unknown_length_makes_it_a_lower_bound() -> None:
    clock = Clock()
    left = TimeLeft(1000, 1, clock)
    for step in range(1, 101):
        clock.now += 1
        left.finished(step)
    assert left.told(100, {"matching": 1, "k-NN": 0}) == "over 0:15:00 left"
    with left.event("matching"):
        clock.now += 60
    assert left.told(100, {"matching": 1}) == "0:16:00 left"
    assert left.told(100, {"matching": 2}) == "0:17:00 left"


@pytest.mark.parametrize(("seconds", "face"), [(0, "0:00:00"), (59.2, "0:01:00"), (4765, "1:19:25"), (1e5, "27:46:40")])
def test_clock_face(seconds: float, face: str) -> None:
    assert clock_face(seconds) == face

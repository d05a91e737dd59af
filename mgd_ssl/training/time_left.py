"""How long a run still takes: its steps, and what happens between them."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

LEFT_OUT = 5  # first steps, which compile, tune and fill caches
ENOUGH_STEPS = 5  # measured, before anything is said
ENOUGH_SECONDS = 20.0


class TimeLeft:
    """Estimate from the mean step so far and the newest duration of each kind of event, such as an evaluation.

    Args:
        total_steps: of the run.
        left_out: steps at the start that are not measured, as their batches were made before it.
        clock: seconds.
    """

    def __init__(self, total_steps: int, left_out: int = LEFT_OUT, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_steps, self.left_out, self.clock = total_steps, left_out, clock
        self.started = 0.0  # when the first measured step began, with the time of events taken off
        self.first_step = -1  # finished steps then
        self.seen = 0  # steps seen so far
        self.durations: dict[str, float] = {}  # seconds of the newest event of a kind

    def finished(self, step: int) -> None:
        """Tell that a step is done, with the number of finished steps; call it after every one."""
        self.seen += 1
        if self.seen == self.left_out:
            self.started, self.first_step = self.clock(), step

    @contextmanager
    def event(self, kind: str) -> Iterator[None]:
        """Measure an event that happens in the block; it is not a part of any step."""
        began = self.clock()
        yield
        self.durations[kind] = self.clock() - began
        self.started += self.durations[kind]

    def seconds(self, step: int, to_come: Mapping[str, int]) -> float | None:
        """Estimate after a step, None as long as too little is known.

        Args:
            step: finished steps.
            to_come: how many events of each kind still follow; kinds that never happened yet are not counted.
        """
        elapsed, measured = self.clock() - self.started, step - self.first_step
        if self.first_step < 0 or measured < ENOUGH_STEPS or elapsed < ENOUGH_SECONDS:
            return None
        events = sum(count * self.durations.get(kind, 0.0) for kind, count in to_come.items())
        return elapsed / measured * (self.total_steps - step) + events

    def told(self, step: int, to_come: Mapping[str, int]) -> str:
        """`6:17 left` or `over 6:17 left`, where an event of unknown length follows; empty as long as it is unknown."""
        seconds = self.seconds(step, to_come)
        if seconds is None:
            return ""
        unknown = any(count and kind not in self.durations for kind, count in to_come.items())
        return f"{'over ' if unknown else ''}{clock_face(seconds)} left"


def clock_face(seconds: float) -> str:
    """`0:06:17`; hours, minutes, seconds, rounded up."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

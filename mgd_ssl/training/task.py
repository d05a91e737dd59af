"""What the loop asks of a task: a module, batches, and events between steps."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class StepOutput(NamedTuple):
    """What a module makes of one batch."""

    losses: dict[str, Tensor]  # weighted scalars; their sum is minimised, each is a column of the log
    shown: dict[str, Tensor]  # scalars without gradient, logged beside them
    carried: Any = None  # handed to `Task.after_step`: MoCo's keys

    @property
    def total(self) -> Tensor:
        """The loss that is minimised."""
        terms = iter(self.losses.values())
        return sum(terms, next(terms))


class Event(NamedTuple):
    """What happens between two steps, and is a row of metrics.jsonl."""

    name: str  # matching, knn, validation
    steps: tuple[int, ...]  # numbers of finished steps after which it happens, ascending
    run: Callable[[], dict[str, Any]]  # on all ranks; returns the row

    def due(self, step: int) -> bool:
        """Whether it happens after so many steps."""
        return step in self.steps[bisect_left(self.steps, step) :][:1]

    def to_come(self, step: int) -> int:
        """How often it still happens."""
        return len(self.steps) - bisect_left(self.steps, step)


class Task(Protocol):
    """One way of training, seen from the loop."""

    total_steps: int

    @property
    def module(self) -> nn.Module:
        """All that is trained; forward(*inputs) -> StepOutput."""
        ...

    @property
    def events(self) -> Sequence[Event]:
        """In the order they happen."""
        ...

    def batches(self, first_step: int) -> AbstractContextManager[Iterator[Any]]:
        """This rank's part of every batch from a step on to the end."""
        ...

    def inputs(self, batch: Any, step: int) -> tuple[Any, ...]:
        """What the module's forward takes, on the device and without gradient; the teacher is asked here."""
        ...

    def after_step(self, carried: Any) -> None:
        """What follows the update of the weights: enqueue."""
        ...

    def state(self) -> dict[str, Any]:
        """All that the task needs to go on, of tensors and builtins."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        ...

    def finish(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Last evaluation; returns what goes into result.json, and the network to take away as a state dict."""
        ...

"""A loss term that draws a student towards a teacher, and what it may look at."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass
class Seen:
    """What was seen of a network while it looked at a batch."""

    maps: list[Tensor] = field(default_factory=list)  # pre-ReLU [N, C, H, W] of every tapped stage
    output: Tensor | None = None  # what the network returned


class Term(Protocol):
    """One way of being taught; a module whose state lives in its buffers and parameters."""

    def prepare(self, teacher: Seen, step: int) -> Any:
        """The target of a batch, without gradient.

        Args:
            teacher: what was seen of the teacher.
            step: number of finished steps, equal on all ranks: the address of what is drawn at random.
        """
        ...

    def loss(self, student: Seen, target: Any) -> Tensor:
        """Scalar, before its weight."""
        ...

    def after_step(self) -> None:
        """What follows the update of the weights: queues."""
        ...

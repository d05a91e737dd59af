"""A loss term that draws a student towards a teacher, what it may look at, and what it needs to be seen."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY = frozenset({"query"})
CROPS = "crops"  # view of the student: L local crops of every image, side by side in one batch of N L


@dataclass
class Seen:
    """What was seen of a network while it looked at a batch."""

    maps: list[Tensor] = field(default_factory=list)  # pre-ReLU [N, C, H, W] of every tapped stage
    output: Tensor | None = None  # what the network returned: logits, or an embedding that is not normalised
    feature: Tensor | None = None  # pooled [N, d], what enters its classifier or head
    views: dict[str, "Seen"] = field(default_factory=dict)  # of other views: key, member, member_key, mixed, crops
    epoch: float = 0.0  # epochs done, with their fraction: for schedules
    share: float = 1.0  # of the query's image in the view `mixed`

    def embedding(self) -> Tensor:
        """The output [N, dim] in float32, each row of unit length."""
        assert self.output is not None
        with torch.autocast(self.output.device.type, enabled=False):
            return F.normalize(self.output.float(), dim=1)

    def with_crops(self, read: Callable[["Seen"], Tensor]) -> Tensor:
        """What is read of this view [N, ...], and below it of its local crops where there are some: [N + N L, ...]."""
        crops = self.views.get(CROPS)
        return read(self) if crops is None else torch.cat([read(self), read(crops)])

    def to_crops(self, target: Tensor) -> Tensor:
        """For every row of `with_crops` what [N, ...] says of its image."""
        crops = self.views.get(CROPS)
        if crops is None:
            return target
        return torch.cat([target, target.repeat_interleave(len(pooled(crops)) // len(target), dim=0)])


def pooled(seen: Seen) -> Tensor:
    """The feature [N, d]."""
    assert seen.feature is not None
    return seen.feature


class Needs(NamedTuple):
    """What a term has to be shown."""

    teacher: frozenset[str] = QUERY  # views that the teacher looks at
    student: frozenset[str] = frozenset()  # views that the student looks at, with gradient, beside the query
    maps: bool = False  # of both networks
    head: bool = False  # the teacher's own, which makes an embedding of its feature

    @classmethod
    def union(cls, needs: Iterable["Needs"]) -> "Needs":
        """What several terms have to be shown together; each view is seen once."""
        every = list(needs)
        return cls(
            frozenset().union(*(one.teacher for one in every)),
            frozenset().union(*(one.student for one in every)),
            any(one.maps for one in every),
            any(one.head for one in every),
        )


class Term(Protocol):
    """One way of being taught; a module whose state lives in its buffers and parameters."""

    needs: Needs

    def prepare(self, teacher: Seen, step: int) -> Any:
        """The target of a batch, without gradient.

        Args:
            teacher: what was seen of the teacher.
            step: number of finished steps, equal on all ranks: the address of what is drawn at random.
        """
        ...

    def loss(self, student: Seen, target: Any) -> Tensor:
        """Scalar, before its weight: a mean over images, in float32."""
        ...

    def after_step(self) -> None:
        """What follows the update of the weights: queues."""
        ...

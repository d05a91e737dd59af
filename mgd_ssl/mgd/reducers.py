"""Reducers: from the G teacher channels of a student channel to one.

Section 3.3 of Matching Guided Distillation (https://arxiv.org/abs/2008.09958): absolute max pooling, random drop
and sparse matching; `max` and `mean` are the simple pooling the paper compares with.

Each takes a teacher map [N, C_t, H, W], its margins [C_t] and an assignment [C_s, G] and returns
(target [N, C_s, H, W], margin [C_s]).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reducer:
    """How the teacher channels of a student channel become one.

    Args:
        pool: the function.
        takes_one: one teacher channel a student channel, instead of `C_t // C_s`.
        draws: at random, from the generator it is given.
    """

    pool: Callable[..., tuple[Tensor, Tensor]]
    takes_one: bool = False
    draws: bool = False

    def __call__(
        self, teacher_map: Tensor, margin: Tensor, assignment: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """See the module."""
        if self.draws:
            return self.pool(teacher_map, margin, assignment, generator)
        return self.pool(teacher_map, margin, assignment)

    def group_size(self, student_channels: int, teacher_channels: int) -> int:
        """Teacher channels G of each student channel."""
        return 1 if self.takes_one else teacher_channels // student_channels


def amp(teacher_map: Tensor, margin: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute max pooling: at each position the value of the largest magnitude, with its sign; mean margin.

    Where a value and its negative tie, the positive one is taken.
    """
    low = high = _select(teacher_map, assignment[:, 0])
    for channels in assignment.T[1:]:  # one gathered map at a time, not all G of them
        candidate = _select(teacher_map, channels)
        low, high = torch.minimum(low, candidate), torch.maximum(high, candidate)
    # the sign of the sum is that of the larger magnitude, which saves a slow `where`
    return torch.copysign(torch.maximum(high, -low), high + low), margin[assignment].mean(dim=1)


def max_pool(teacher_map: Tensor, margin: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """At each position the largest value of the group; largest margin."""
    target = _select(teacher_map, assignment[:, 0])
    for channels in assignment.T[1:]:
        target = torch.maximum(target, _select(teacher_map, channels))
    return target, margin[assignment].amax(dim=1)


def mean_pool(teacher_map: Tensor, margin: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """At each position the mean of the group; mean margin."""
    target = _select(teacher_map, assignment[:, 0])
    for channels in assignment.T[1:]:
        target = target + _select(teacher_map, channels)
    return target / assignment.shape[1], margin[assignment].mean(dim=1)


def random_drop(
    teacher_map: Tensor, margin: Tensor, assignment: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """One channel of the group, drawn anew in every call for each student channel; the margin of that channel."""
    drawn = torch.randint(assignment.shape[1], (assignment.shape[0], 1), generator=generator, device=assignment.device)
    return sparse(teacher_map, margin, assignment.gather(1, drawn))


def random_drop_everywhere(
    teacher_map: Tensor, margin: Tensor, assignment: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Random drop as in the published program: one channel of the group for every image, student channel and position,
    and the margin of another one, drawn for itself."""
    n, _, h, w = teacher_map.shape
    channels, group = assignment.shape
    device = assignment.device
    drawn = torch.randint(group, (n, channels, h, w), generator=generator, device=device)
    drawn_margin = torch.randint(group, (channels,), generator=generator, device=device)
    return taken(teacher_map, margin, assignment, drawn, drawn_margin)


def taken(
    teacher_map: Tensor, margin: Tensor, assignment: Tensor, drawn: Tensor, drawn_margin: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and margin of given places, 0 to G - 1, in the groups: drawn [N, C_s, H, W] and drawn_margin [C_s]."""
    target = _select(teacher_map, assignment[:, 0])
    for place, channels in enumerate(assignment.T[1:], start=1):
        target = torch.where(drawn == place, _select(teacher_map, channels), target)
    return target, margin[assignment.gather(1, drawn_margin[:, None])[:, 0]]


def sparse(teacher_map: Tensor, margin: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """The one matched channel (the first of the group); its margin."""
    return _select(teacher_map, assignment[:, 0]), margin[assignment[:, 0]]


def _select(teacher_map: Tensor, channels: Tensor) -> Tensor:
    """Channels of a map in its own memory format; as a matrix of pixels, which torch gathers from fastest."""
    if not teacher_map.is_contiguous(memory_format=torch.channels_last):
        return teacher_map.index_select(1, channels)
    n, c_t, h, w = teacher_map.shape
    pixels = teacher_map.permute(0, 2, 3, 1).reshape(-1, c_t)  # [NHW, C_t]
    return pixels.index_select(1, channels).view(n, h, w, -1).permute(0, 3, 1, 2)


REDUCERS = {
    "amp": Reducer(amp),
    "max": Reducer(max_pool),
    "mean": Reducer(mean_pool),
    "random_drop": Reducer(random_drop, draws=True),
    "random_drop_everywhere": Reducer(random_drop_everywhere, draws=True),
    "sparse": Reducer(sparse, takes_one=True),
}

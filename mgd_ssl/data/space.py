"""Memory that a batch of views is written to, again and again."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Space(NamedTuple):
    """Memory of a batch of views."""

    views: Tensor  # [V, N, H, W, 3] uint8
    rows: Tensor  # [V, N, 15]
    crops: Tensor | None = None  # [N, L, h, w, 3] uint8: local crops, those of an image side by side
    crop_rows: Tensor | None = None  # [N, L, 15]

    @property
    def tensors(self) -> list[Tensor]:
        """All there are."""
        return [tensor for tensor in self if tensor is not None]

    def each(self, change: Callable[[Tensor], Tensor]) -> "Space":
        """The same of changed tensors."""
        return Space(*(None if tensor is None else change(tensor) for tensor in self))  # type: ignore[arg-type]

    def first(self, count: int) -> "Space":
        """Of the first images."""
        beside = (None if tensor is None else tensor[:count] for tensor in (self.crops, self.crop_rows))
        return Space(self.views[:, :count], self.rows[:, :count], *beside)

"""How a training step sees the teacher: in float32, in half precision, or in 8 bits; on a GPU with fused kernels."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mgd_ssl.distillation.term import Needs, Seen
from mgd_ssl.networks.convolution_relu import can_fuse
from mgd_ssl.networks.fused import fused_teacher, proven
from mgd_ssl.networks.int8 import Ranges, int8_teacher, seen_ranges
from mgd_ssl.networks.low_precision import half_teacher, teacher_dtype
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.tasks.views import taught


class Sight:
    """A teacher as a step asks it.

    Args:
        whole: in float32, on the device; None: there is none.
        wanted: `teacher_precision` of the settings, decided.
        runtime: of the training.
    """

    def __init__(self, whole: Teacher | None, wanted: str, runtime: Runtime) -> None:
        self.whole, self.teacher = whole, whole
        self.int8 = wanted == "int8" and whole is not None
        self.ranges: Ranges = {}
        dtype = None if self.int8 else teacher_dtype(wanted, runtime.precision, runtime.device)
        self.runtime = replace(runtime, precision=dtype)
        if whole is not None and dtype is not None:
            self.teacher = half_teacher(whole, dtype)
        self.unfused: Teacher | None = None  # until the fused one is proven by the first batch
        if self.teacher is not None and can_fuse(runtime) and (fused := fused_teacher(self.teacher)) is not None:
            self.teacher, self.unfused = fused, self.teacher

    def networks(self) -> list[nn.Module]:
        """All that may be called: to match, in steps, and in their place if that is not as it should be."""
        teachers = dict.fromkeys((self.whole, self.teacher, self.unfused))
        return [each.backbone for each in teachers if each is not None]

    def __call__(self, views: Mapping[str, Tensor], needs: Needs) -> Seen:
        """What the teacher sees of the views that somebody asks it about."""
        assert self.teacher is not None and (self.ranges or not self.int8), "not calibrated"
        with self.runtime.autocast():
            if self.unfused is not None and needs.teacher:
                self.teacher = proven(self.teacher, self.unfused, views[min(needs.teacher)])
                self.unfused = None
            return taught(self.teacher, views, needs)

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Fix the ranges of 8 bits by this rank's images [N, 3, H, W]; they become the same on all ranks."""
        assert self.whole is not None
        self._take(seen_ranges(self.whole, batches))

    def state(self) -> Ranges:
        """The ranges of 8 bits; none, where nothing is computed in them."""
        return self.ranges

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned.

        Raises:
            KeyError: when 8 bits are wanted and a convolution has no range.
        """
        if self.int8:
            self._take({name: (low, high) for name, (low, high) in state.items()})

    def _take(self, ranges: Ranges) -> None:
        assert self.whole is not None
        self.ranges, self.teacher = ranges, int8_teacher(self.whole, ranges)

"""Matching: which teacher channels guide which student channel.

Section 3.2 of Matching Guided Distillation (ECCV 2020, https://arxiv.org/abs/2008.09958): channels are compared
by their L2-normalised spatial maps, and a linear assignment with the least total cost matches them one to one,
every student channel standing in for as many rows as it may take teacher channels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mgd_ssl.mgd.margin import MeasuredMargin


@torch.no_grad()
def matching_cost(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Cost of matching every student channel with every teacher channel, summed over the images of a batch.

    Args:
        student_map: [N, C_s, H, W] pre-ReLU map.
        teacher_map: [N, C_t, H, W] pre-ReLU map of the same images.

    Returns:
        [C_s, C_t] float32: sum over images of the squared distance `2 - 2 cos` of the L2-normalised maps.

    Raises:
        ValueError: when the two differ in images or spatial size.
    """
    check_same_size(student_map, teacher_map)
    with torch.autocast(student_map.device.type, enabled=False):  # it would round the product to half precision
        s, t = normalised_pixels(student_map), normalised_pixels(teacher_map)  # [NHW, C_s], [NHW, C_t]
        # the sum of the cosines over the images is one product over all their pixels
        return 2 * student_map.shape[0] - 2 * (s.T @ t)


def normalised_pixels(feature_map: Tensor) -> Tensor:
    """A map [N, C, H, W] as pixels [NHW, C] float32, each channel of each image divided by its norm over H and W."""
    pixels = feature_map.float().permute(0, 2, 3, 1).flatten(1, 2)  # [N, HW, C]
    return F.normalize(pixels, dim=1).flatten(0, 1)


def check_same_size(student_map: Tensor, teacher_map: Tensor) -> None:
    """Raise ValueError unless the two maps agree in all but their channels."""
    student, teacher = list(student_map.shape), list(teacher_map.shape)
    if len(student) != 4 or len(teacher) != 4 or student[:1] + student[2:] != teacher[:1] + teacher[2:]:
        raise ValueError(
            f"the student's map is {student} and the teacher's {teacher} (N, C, H, W): "
            "tap both networks where their maps have one spatial size"
        )


def assign(cost: Tensor | np.ndarray, per_student: int | None = None) -> Tensor:
    """Assign teacher channels to student channels at the least total cost.

    Solved exactly by `scipy.optimize.linear_sum_assignment` on the cost with its rows repeated. When C_t is no
    multiple of C_s the problem is rectangular: all teacher channels compete, the worst matches are left out.

    Args:
        cost: [C_s, C_t], any scale.
        per_student: G, teacher channels a student channel receives; `C_t // C_s` when None, 1 for sparse matching.

    Returns:
        `assignment` [C_s, G] int64 on the CPU; no teacher channel occurs twice.

    Raises:
        ValueError: when the student has more channels than the teacher, G asks for more channels than there are,
            or a cost is not finite.
    """
    matrix = np.asarray(cost.detach().cpu() if isinstance(cost, Tensor) else cost, dtype=np.float64)
    student_channels, teacher_channels = matrix.shape
    if student_channels > teacher_channels:
        raise ValueError(
            f"the student has {student_channels} channels and the teacher only {teacher_channels}: "
            "choose a wider teacher or a thinner student for this stage"
        )
    group = teacher_channels // student_channels if per_student is None else per_student
    if not 1 <= group <= teacher_channels // student_channels:
        raise ValueError(
            f"per_student is {group}: {teacher_channels} teacher channels allow "
            f"1 to {teacher_channels // student_channels} for each of {student_channels} student channels"
        )
    if not np.isfinite(matrix).all():
        raise ValueError("the matching cost holds a value that is not finite: a map of student or teacher is broken")
    _, columns = linear_sum_assignment(np.tile(matrix, (group, 1)))  # row g * C_s + s is student channel s
    return torch.from_numpy(columns.astype(np.int64).reshape(group, student_channels).T.copy())


def total_cost(cost: Tensor, assignment: Tensor) -> float:
    """Sum of the costs [C_s, C_t] of all matched pairs of an assignment [C_s, G]."""
    return float(cost.double().cpu().gather(1, assignment.cpu()).sum())


class MatchingStatistics:
    """Costs, and on request the measured margins, summed over images on the device they are seen on.

    Args:
        student_channels: C_s of every stage.
        teacher_channels: C_t of every stage.
        device: where to accumulate.
        measure_margins: also collect `MeasuredMargin` of the teacher's maps.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        device: torch.device | str = "cpu",
        measure_margins: bool = False,
    ) -> None:
        self.costs = [
            torch.zeros(c_s, c_t, dtype=torch.float64, device=device)
            for c_s, c_t in zip(student_channels, teacher_channels, strict=True)
        ]  # [C_s, C_t] a stage
        self.num_images = torch.zeros((), dtype=torch.float64, device=device)
        self.margins = [MeasuredMargin(c_t, device) for c_t in teacher_channels] if measure_margins else []

    @torch.no_grad()
    def update(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> None:
        """Add the pre-ReLU maps of one batch, one [N, C, H, W] of each network a stage."""
        for cost, student_map, teacher_map in zip(self.costs, student_maps, teacher_maps, strict=True):
            cost += matching_cost(student_map, teacher_map)
        for margin, teacher_map in zip(self.margins, teacher_maps, strict=False):
            margin.update(teacher_map)
        self.num_images += student_maps[0].shape[0]

    def tensors(self) -> list[Tensor]:
        """All sums, for an all-reduce in place when every process saw its own part of the images."""
        return [*self.costs, self.num_images, *(t for m in self.margins for t in (m.total, m.count))]

    def mean_costs(self) -> list[Tensor]:
        """[C_s, C_t] cost a stage, averaged over the images seen."""
        return [cost / self.num_images for cost in self.costs]


def chosen_matching_epochs(chosen: Sequence[int] | None, epochs: int) -> tuple[int, ...]:
    """Epochs after which the matching is updated: those chosen, none of them for an empty list; None: the published."""
    return matching_epochs(epochs) if chosen is None else tuple(chosen)


def matching_epochs(epochs: int) -> tuple[int, ...]:
    """Epochs after which the matching is updated: `ceil(logspace(0, 2.1, 10))` for the published 200.

    For another length the last update keeps its place, 63 % of the way: 10 ** 2.1 of 200 epochs.
    """
    last = math.log10(max(1.0, 10**2.1 * epochs / 200))
    updates = {math.ceil(round(10 ** (last * i / 9), 9)) for i in range(10)}
    return tuple(sorted(epoch for epoch in updates if epoch < epochs))

"""Matching Guided Distillation (ECCV 2020, https://arxiv.org/abs/2008.09958): two lists of maps in, one loss out.

Never sees a network, so it serves any pair of networks and any task.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mgd_ssl.mgd.loss import partial_l2
from mgd_ssl.mgd.matching import assign, check_same_size, total_cost
from mgd_ssl.mgd.reducers import REDUCERS

INITIAL_MARGIN = -0.7978845608028654  # relu_margin at BatchNorm's initial weight 1 and bias 0: -sqrt(2 / pi)


# inductor's options for a function whose time is that of its reads and writes: by default it writes down what it could
# compute anew from what it reads anyway (the distillation loss of a step at 224 pixels and batch 256 in bfloat16 takes
# 4.9 GB then, and 2.6 with these); for whole networks the default is the better one
FEWEST_BYTES: dict[str, Any] = {
    "realize_reads_threshold": 64,
    "realize_opcount_threshold": 500,
    "realize_acc_reads_threshold": 64,
}


class Target(NamedTuple):
    """What a stage of the student is pulled towards."""

    map: Tensor  # [N, C_s, H, W] reduced teacher map
    margin: Tensor  # [C_s]
    valid: Tensor | None = None  # [N, 1, H, W] where it counts, the map being zero elsewhere; None: everywhere


class StageMatch(NamedTuple):
    """How a matching update changed one stage."""

    cost_before: float | None  # mean cost a matched pair under the new costs, old assignment; None the first time
    cost_after: float  # the same with the new assignment
    changed: float  # share of matched teacher channels that went to another student channel


class MGD(nn.Module):
    """The distillation loss over any number of stages, with its assignments, margins and student norms.

    Args:
        student_channels: C_s of every tapped stage.
        teacher_channels: C_t of every tapped stage, at least C_s.
        margins: [C_t] of every stage (see `relu_margin`); the constant of an untrained BatchNorm when None.
        reducer: name in `REDUCERS`.
        stage_weights: factor of every stage; 1/2 from stage to stage up to 1 for the last when None (published).
        drop_remainder: let the first G * C_s teacher channels alone compete, unless each student channel takes one,
            as the published program did where C_t is no multiple of C_s; else all compete.
        norm: channels -> the norm of a student's map.

    State: `margin<i>` [C_t] and `assignment<i>` [C_s, G] are buffers and `norms` a module a stage, so all of
    it is part of the state dict. The assignments are unset until `rematch` or a loaded state.

    Raises:
        ValueError: when the lists differ in length, a student stage is wider than the teacher's, or the reducer is
            unknown.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        margins: Sequence[Tensor] | None = None,
        reducer: str = "amp",
        stage_weights: Sequence[float] | None = None,
        drop_remainder: bool = False,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        num_stages = len(student_channels)
        self.stage_weights = list(stage_weights or [0.5 ** (num_stages - 1 - i) for i in range(num_stages)])
        if not num_stages == len(teacher_channels) == len(self.stage_weights) == len(margins or student_channels):
            raise ValueError(
                f"{num_stages} student stages, {len(teacher_channels)} teacher stages, {len(self.stage_weights)} "
                f"stage weights and {len(margins or student_channels)} margins: pass one of each for every stage"
            )
        if reducer not in REDUCERS:
            raise ValueError(f"reducer is {reducer!r}: choose one of {', '.join(REDUCERS)}")
        self.student_channels, self.teacher_channels = list(student_channels), list(teacher_channels)
        self.reducer = REDUCERS[reducer]
        self.drop_remainder = drop_remainder and not self.reducer.takes_one
        self.norms = nn.ModuleList(norm(c_s) for c_s in student_channels)
        for i, (c_s, c_t) in enumerate(zip(student_channels, teacher_channels, strict=True)):
            if c_s > c_t:
                raise ValueError(
                    f"stage {i + 1} has {c_s} student channels and only {c_t} teacher channels: "
                    "choose a wider teacher or a thinner student"
                )
            margin = margins[i] if margins is not None else torch.full((c_t,), INITIAL_MARGIN)
            unset = torch.full((c_s, self.reducer.group_size(c_s, c_t)), -1)
            self.register_buffer(f"margin{i + 1}", margin.detach().clone())  # [C_t]
            self.register_buffer(f"assignment{i + 1}", unset)  # [C_s, G]
        self._matched = False  # kept beside the buffers, so that no step waits for the device to ask
        self.register_load_state_dict_post_hook(lambda module, _: module._note_loaded())

    @property
    def matched(self) -> bool:
        """Whether every student channel has its teacher channels."""
        return self._matched

    @property
    def margins(self) -> list[Tensor]:
        """[C_t] of every stage."""
        return [self.get_buffer(f"margin{i + 1}") for i in range(len(self.norms))]

    @property
    def assignments(self) -> list[Tensor]:
        """[C_s, G] of every stage; -1 until the first matching."""
        return [self.get_buffer(f"assignment{i + 1}") for i in range(len(self.norms))]

    def forward(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
        """Distillation loss of one batch.

        Args:
            student_maps: pre-ReLU [N, C_s, H, W] a stage, with gradient.
            teacher_maps: pre-ReLU [N, C_t, H, W] a stage of the same images.

        Returns:
            Scalar: weighted sum over stages of the loss summed over elements, divided by N.

        Raises:
            RuntimeError: before the first matching.
            ValueError: when two maps differ in images or spatial size.
        """
        return self.loss(student_maps, self.reduce(teacher_maps))

    @torch.no_grad()
    def reduce(self, teacher_maps: Sequence[Tensor], generator: torch.Generator | None = None) -> list[Target]:
        """Reduce every teacher map [N, C_t, H, W] to the student's channels, by the current assignment.

        Args:
            teacher_maps: one a stage.
            generator: for reducers that draw at random.
        """
        if not self._matched:
            raise RuntimeError("MGD has no assignment yet: call rematch with the matching costs, or load a state")
        return [
            Target(*self.reducer(teacher_map, margin, assignment, generator))
            for teacher_map, margin, assignment in zip(teacher_maps, self.margins, self.assignments, strict=True)
        ]

    def loss(self, student_maps: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """The loss of `forward` from teacher maps that are reduced already."""
        total = student_maps[0].new_zeros((), dtype=torch.float32)
        # sums over H * W overflow half precision
        with torch.autocast(total.device.type, enabled=False):
            stages = zip(self.stage_weights, self.norms, student_maps, targets, strict=True)
            for weight, norm, student_map, target in stages:
                check_same_size(student_map, target.map)
                normalised = norm(student_map.float())  # [N, C_s, H, W]
                if target.valid is not None:
                    normalised = normalised * target.valid
                total = total + weight * partial_l2(normalised, target.map.float(), target.margin)
        return total / student_maps[0].shape[0]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile `reduce` and `loss` with torch.compile: each map is then read once, in one or two kernels.

        Args:
            args: of torch.compile.
            kwargs: of torch.compile.
        """
        if kwargs.get("backend", "inductor") == "inductor":
            kwargs = {"options": FEWEST_BYTES, **kwargs}
        self.loss = torch.compile(self.loss, *args, **kwargs)  # type: ignore[method-assign]
        if not self.reducer.draws:  # a generator's draws are no part of a graph
            self.reduce = torch.compile(self.reduce, *args, **kwargs)  # type: ignore[method-assign]

    @torch.no_grad()
    def rematch(self, costs: Sequence[Tensor]) -> list[StageMatch]:
        """Solve the assignment of every stage anew.

        Args:
            costs: [C_s, C_t] a stage, averaged over images (see `MatchingStatistics`).
        """
        changes, assignments = [], []
        for cost, old in zip(costs, self.assignments, strict=True):
            competing = cost[:, : old.numel()] if self.drop_remainder else cost
            new = assign(competing, per_student=old.shape[1]).to(old.device)  # [C_s, G]
            before = total_cost(cost, old) / old.numel() if self._matched else None
            stays = (new[:, :, None] == old[:, None, :]).any(dim=2)  # [C_s, G]
            changes.append(StageMatch(before, total_cost(cost, new) / new.numel(), 1 - stays.double().mean().item()))
            assignments.append(new)
        self.set_assignments(assignments)
        return changes

    @torch.no_grad()
    def set_assignments(self, assignments: Sequence[Tensor]) -> None:
        """Overwrite the assignments, [C_s, G] a stage.

        Raises:
            ValueError: when one names a channel the teacher does not have.
        """
        for old, new in zip(self.assignments, assignments, strict=True):
            old.copy_(new)
        self._note_loaded()
        if not self._matched:
            raise ValueError("an assignment names no channel (-1): give every student channel its teacher channels")

    @torch.no_grad()
    def set_margins(self, margins: Sequence[Tensor]) -> None:
        """Overwrite the margins, [C_t] a stage."""
        for old, new in zip(self.margins, margins, strict=True):
            old.copy_(new)

    def _note_loaded(self) -> None:
        for i, (assignment, num_channels) in enumerate(zip(self.assignments, self.teacher_channels, strict=True)):
            if assignment.numel() and not -1 <= int(assignment.min()) <= int(assignment.max()) < num_channels:
                raise ValueError(f"assignment{i + 1} names channels that a teacher of {num_channels} does not have")
        self._matched = all(bool((assignment >= 0).all()) for assignment in self.assignments)

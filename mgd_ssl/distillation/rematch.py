"""A matching update: both networks look at a fixed set of images, and the assignments are solved anew."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mgd_ssl.errors import TrainingError
from mgd_ssl.files import write_whole, writing
from mgd_ssl.mgd.matching import MatchingStatistics
from mgd_ssl.mgd.mgd import MGD, StageMatch
from mgd_ssl.run.log import logger
from mgd_ssl.run.runtime import on_rank_zero
from moco.dist import broadcast, sum_over_ranks

Batch = TypeVar("Batch")  # images [N, 3, H, W], or whatever both networks' maps are taken of
Maps = Callable[[Batch], list[Tensor]]  # a batch -> pre-ReLU maps [N, C, H, W] of every stage


@torch.no_grad()
def rematch(
    mgd: MGD,
    student: Maps[Batch],
    teacher: Maps[Batch],
    images: Iterable[Batch],
    measure_margins: bool = False,
) -> tuple[list[StageMatch], list[Tensor]]:
    """Match the student's channels anew; the same assignments end on every rank.

    The statistics are those of the published program: both networks in eval mode, centre crops, the same images at
    every update; but every process takes its own part of them. All of it is computed in float32, whatever the precision
    of the training: half precision would match some channels otherwise, and this is rare.

    Args:
        mgd: whose assignments (and margins, if measured) are overwritten.
        student: its maps, in eval mode.
        teacher: likewise.
        images: batches of this rank's part, on the device.
        measure_margins: replace the margins by those measured on the way.

    Returns:
        How every stage changed, and its mean costs [C_s, C_t]; on rank 0 alone the costs count.

    Raises:
        TrainingError: on all ranks, when a cost is not finite.
    """
    device = mgd.margins[0].device
    statistics = MatchingStatistics(mgd.student_channels, mgd.teacher_channels, device, measure_margins)
    for batch in images:
        with full_precision(device):
            statistics.update(student(batch), teacher(batch))
    for total in statistics.tensors():
        sum_over_ranks(total)

    costs = statistics.mean_costs()
    for stage, cost in enumerate(costs, start=1):
        if not cost.isfinite().all():
            raise TrainingError(
                f"a matching cost of stage {stage} is not finite, so a map of student or teacher is broken: go back to "
                "an earlier checkpoint, and lower optim.lr or mgd.weight in a new --out"
            )
    changes = on_rank_zero(lambda: mgd.rematch(costs))  # one rank solves, all receive
    for assignment in mgd.assignments:
        broadcast(assignment)
    mgd.set_assignments(mgd.assignments)
    if measure_margins:
        mgd.set_margins([margin.margin() for margin in statistics.margins])
    return changes, costs


def padded(maps: Maps[Tensor], size: int) -> Maps[Tensor]:
    """The same maps from whole batches alone: a smaller one is filled up with its first image, whose maps are cut off.

    A compiled network would be compiled anew for a last batch of another size. In eval mode no image sees another.

    Args:
        maps: in eval mode.
        size: of a whole batch.
    """

    def whole(images: Tensor) -> list[Tensor]:
        count = images.shape[0]
        if count == size:
            return maps(images)
        filled = torch.cat([images, images[:1].expand(size - count, -1, -1, -1)])
        return [each[:count] for each in maps(filled.contiguous(memory_format=layout_of(images)))]

    return whole


def layout_of(images: Tensor) -> torch.memory_format:
    """Memory format of images [N, 3, H, W]."""
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32: neither autocast nor, in convolutions on a GPU, TF32, which torch allows by default."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def row_of(changes: Sequence[StageMatch]) -> dict[str, float | None]:
    """A row of metrics.jsonl: `stage1_cost_before`, ..."""
    return {
        f"stage{i}_{name}": value
        for i, change in enumerate(changes, start=1)
        for name, value in change._asdict().items()
    }


def tell(changes: Sequence[StageMatch], epoch: int) -> None:
    """One line in the log."""
    tell_when(changes, f"after epoch {epoch}" if epoch else "before training")


def tell_when(changes: Sequence[StageMatch], when: str) -> None:
    """The same, said to be after something else than an epoch."""
    told = "; ".join(
        f"stage {i}: {'' if c.cost_before is None else f'{c.cost_before:.4f} -> '}{c.cost_after:.4f}"
        + ("" if c.cost_before is None else f", {c.changed:.0%} changed")
        for i, c in enumerate(changes, start=1)
    )
    logger.info("matching %s (mean cost of a pair): %s", when, told)


def save_costs(path: Path, costs: Sequence[Tensor], epoch: int) -> None:
    """Write the mean costs of an update for the report: `stage1`, ... [C_s, C_t] as float16, and `epoch`.

    Raises:
        DiskError: when the file cannot be written.
    """
    arrays: dict[str, Any] = {
        f"stage{i}": cost.cpu().numpy().astype(np.float16) for i, cost in enumerate(costs, start=1)
    }
    content = io.BytesIO()
    np.savez_compressed(content, epoch=np.array(epoch), **arrays)
    with writing(path):
        write_whole(path, content.getvalue())

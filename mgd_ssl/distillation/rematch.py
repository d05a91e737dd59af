"""A matching update: both networks look at a fixed set of images, and the assignments are solved anew."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mgd_ssl.data.images import Unreadable
from mgd_ssl.data.loader import batches
from mgd_ssl.data.order import chunks
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.evaluation.features import Leaving
from mgd_ssl.files import write_whole, writing
from mgd_ssl.mgd.matching import MatchingStatistics
from mgd_ssl.mgd.mgd import StageMatch
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime, on_rank_zero
from mgd_ssl.tasks.moco import DistilledMoCo
from moco.dist import broadcast, rank, sum_over_ranks, world_size


@torch.no_grad()
def update_matching(
    method: DistilledMoCo,
    teacher: Teacher,
    crops: CentreCrops,
    indices: np.ndarray,
    runtime: Runtime,
    *,
    batch_size: int,
    workers: int,
    measure_margins: bool,
    report: Callable[[Sequence[Unreadable]], None],
    keep: Callable[[Sequence[Tensor]], None] = lambda costs: None,
    progress: Callable[[int], None] = lambda done: None,
    leaving: Leaving = lambda batches, most: batches,
) -> list[StageMatch]:
    """Match the student's channels anew; the same assignments end on every rank.

    The statistics are those of the published program: both networks in eval mode, centre crops, the same images at
    every update; but every process takes its own part of them. All of it is computed in float32, whatever the precision
    of the training: half precision would match some channels otherwise, and this is rare.

    Args:
        method: with an MGD, whose assignments (and margins, if measured) are overwritten.
        teacher: the frozen teacher.
        crops: where the images come from.
        indices: the images to look at.
        runtime: device; its precision is that of training, not of the matching.
        batch_size: images in a forward pass of one process.
        workers: data processes.
        measure_margins: replace the margins by those measured on the way.
        report: told of unreadable images.
        keep: given the mean costs [C_s, C_t] of every stage, on rank 0 alone.
        progress: told how many of this process's images are done.
        leaving: passes the batches on, or raises between two; see `extract_features`.
    """
    mgd = method.mgd
    assert mgd is not None
    share_norm_statistics(method.moco.encoder_q)
    statistics = MatchingStatistics(mgd.student_channels, mgd.teacher_channels, runtime.device, measure_margins)
    was_training = method.training
    method.eval()
    mine = indices[rank() :: world_size()]
    most, done = math.ceil(math.ceil(len(indices) / world_size()) / batch_size), 0
    with batches(crops, chunks(mine, batch_size), workers, pin=runtime.device.type == "cuda") as loader:
        for batch in leaving(loader, most):
            report(batch.unreadable)
            images = runtime.images(batch.images)
            with full_precision(runtime.device):
                statistics.update(method.student_maps(images), teacher(images))
            done += len(images)
            progress(done)
    method.train(was_training)
    for total in statistics.tensors():
        sum_over_ranks(total)

    def solve() -> list[StageMatch]:
        costs = statistics.mean_costs()
        changes = mgd.rematch(costs)
        keep(costs)
        return changes

    changes = on_rank_zero(solve)  # one rank solves, all receive
    if measure_margins:
        mgd.set_margins([margin.margin() for margin in statistics.margins])
    for assignment in mgd.assignments:
        broadcast(assignment)
    mgd.matched = True
    return changes


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


def share_norm_statistics(network: nn.Module) -> None:
    """Overwrite buffers (BatchNorm statistics) with those of rank 0, which are the ones that are saved."""
    for buffer in network.buffers():
        broadcast(buffer)


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

"""A matching update: both networks look at a fixed set of images, and the assignments are solved anew."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from mgd_ssl.data import CentreCrops, Unreadable, batches, chunks
from mgd_ssl.matching import MatchingStatistics
from mgd_ssl.method import DistilledMoCo
from mgd_ssl.mgd import StageMatch
from mgd_ssl.runtime import Runtime, on_rank_zero
from mgd_ssl.teacher import Teacher
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
) -> list[StageMatch]:
    """Match the student's channels anew; the same assignments end on every rank.

    The statistics are those of the published program: both networks in eval mode, centre crops, the same images at
    every update; but every process takes its own part of them.

    Args:
        method: with an MGD, whose assignments (and margins, if measured) are overwritten.
        teacher: the frozen teacher.
        crops: where the images come from.
        indices: the images to look at.
        runtime: device and precision.
        batch_size: images in a forward pass of one process.
        workers: data processes.
        measure_margins: replace the margins by those measured on the way.
        report: told of unreadable images.
    """
    mgd = method.mgd
    assert mgd is not None
    share_norm_statistics(method.moco.encoder_q)
    statistics = MatchingStatistics(mgd.student_channels, mgd.teacher_channels, runtime.device, measure_margins)
    was_training = method.training
    method.eval()
    mine = indices[rank() :: world_size()]
    with batches(crops, chunks(mine, batch_size), workers, pin=runtime.device.type == "cuda") as loader:
        for batch in loader:
            report(batch.unreadable)
            images = runtime.images(batch.images)
            with runtime.autocast():
                statistics.update(method.student_maps(images), teacher(images))
    method.train(was_training)
    for total in statistics.tensors():
        sum_over_ranks(total)

    # one rank solves, all receive
    changes = on_rank_zero(lambda: mgd.rematch(statistics.mean_costs()))
    if measure_margins:
        mgd.set_margins([margin.margin() for margin in statistics.margins])
    for assignment in mgd.assignments:
        broadcast(assignment)
    mgd.matched = True
    return changes


def share_norm_statistics(network: nn.Module) -> None:
    """Overwrite buffers (BatchNorm statistics) with those of rank 0, which are the ones that are saved."""
    for buffer in network.buffers():
        broadcast(buffer)

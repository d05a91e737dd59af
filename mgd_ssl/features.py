"""Frozen features of labelled images, shared by every evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from mgd_ssl.data import CentreCrops, ImageList, Unreadable, batches, chunks
from mgd_ssl.runtime import Runtime
from moco.dist import rank, world_size


@dataclass(frozen=True)
class Features:
    """Features, L2-normalised unless said otherwise, and their labels."""

    values: np.ndarray  # [n, d] float32
    labels: np.ndarray  # [n] int64


@torch.inference_mode()
def extract_features(
    trunk: nn.Module,
    images: ImageList,
    labels: np.ndarray,
    indices: np.ndarray,
    runtime: Runtime,
    *,
    image_size: int,
    batch_size: int = 64,
    workers: int = 0,
    normalise: bool = True,
    report: Callable[[Sequence[Unreadable]], None] = lambda unreadable: None,
) -> Features:
    """Features of centre crops, each process taking its part; complete on every rank.

    Args:
        trunk: [N, 3, H, W] -> [N, d]; put into eval mode for the time being.
        images: where they come from.
        labels: [len(images)] class index of every image.
        indices: which of them.
        runtime: device and precision.
        image_size: edge of the crop in pixels.
        batch_size: images in a forward pass.
        workers: data processes.
        normalise: divide every feature vector by its norm.
        report: told of unreadable images, whose replacements bring their own labels.
    """
    mine = indices[rank() :: world_size()]
    values, used = [], []
    modes = {module: module.training for module in trunk.modules()}
    trunk.eval()
    with batches(CentreCrops(images, image_size, seed=0), chunks(mine, batch_size), workers, pin=False) as loader:
        for batch in loader:
            report(batch.unreadable)
            with runtime.autocast():
                features = trunk(runtime.images(batch.images))  # [N, d]
            features = features.float()
            values.append((F.normalize(features, dim=1) if normalise else features).cpu())
            used.append(batch.indices)
    for module, mode in modes.items():
        module.training = mode
    return _gathered(torch.cat(values).numpy(), labels[torch.cat(used).numpy()], len(indices))


def _gathered(values: np.ndarray, labels: np.ndarray, total: int) -> Features:
    """Interleave the ranks' parts back into the order of the indices."""
    if world_size() == 1:
        return Features(values, labels)
    parts: list[tuple[np.ndarray, np.ndarray]] = [None] * world_size()  # type: ignore[list-item]
    dist.all_gather_object(parts, (values, labels))
    all_values = np.empty((total, values.shape[1]), dtype=values.dtype)
    all_labels = np.empty(total, dtype=labels.dtype)
    for r, (part_values, part_labels) in enumerate(parts):
        all_values[r :: world_size()] = part_values
        all_labels[r :: world_size()] = part_labels
    return Features(all_values, all_labels)

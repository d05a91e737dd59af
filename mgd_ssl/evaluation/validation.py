"""Accuracy of a classifier on labelled images: centre crops, each process taking its part."""

import numpy as np
import torch
from torch import nn

from mgd_ssl.data.loader import Reading, one_pass
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.data.sources import Labelled
from mgd_ssl.data.upload import Upload
from mgd_ssl.evaluation.accuracy import Accuracy
from mgd_ssl.run.runtime import Runtime
from moco.device import uploaded
from moco.dist import rank, sum_over_ranks, world_size

TOP = 5


@torch.inference_mode()
def validate(
    network: nn.Module, labelled: Labelled, runtime: Runtime, *, image_size: int, reading: Reading
) -> tuple[Accuracy, torch.Tensor]:
    """Top-1 and top-5, equal on all ranks, and how often every class was taken for every other.

    Args:
        network: images [N, 3, H, W] -> logits [N, C]; put into eval mode for the time being.
        labelled: images and their class indexes; replacements of unreadable images bring their own labels.
        runtime: device and precision.
        image_size: edge of the crop in pixels.
        reading: in which batches, and told to whom.

    Returns:
        Accuracies in percent, and counts [C, C] int64 of (class, what it was taken for). With fewer than five other
        classes the top 5 are all of them.
    """
    images, labels = labelled
    upload, modes = Upload(runtime), {module: module.training for module in network.modules()}
    network.eval()
    every_label = torch.from_numpy(labels)
    hits = torch.zeros(2, dtype=torch.int64, device=runtime.device)  # read once, at the end: no batch waits for another
    confusion = torch.zeros(0, dtype=torch.int64, device=runtime.device)
    every = range(rank(), len(images), world_size())
    with one_pass(CentreCrops(images, image_size, seed=0), np.arange(len(images)), reading) as batches:
        for batch in batches:
            with runtime.autocast():
                logits = network(upload.images(batch.images)).float()  # [N, C]
            wanted = uploaded(every_label[batch.indices], runtime.device)
            ranked = logits.topk(min(TOP, logits.shape[1]), dim=1).indices  # [N, 5]
            right = ranked == wanted[:, None]
            hits += torch.stack([right[:, 0].sum(), right.any(dim=1).sum()])
            classes = logits.shape[1]
            if len(confusion) == 0:
                confusion = confusion.new_zeros(classes**2)
            confusion.index_add_(0, wanted * classes + ranked[:, 0], torch.ones_like(wanted))
    for module, mode in modes.items():
        module.training = mode
    if len(every) == 0:  # more processes than images
        raise ValueError("a process has no image to classify")
    hits, confusion = sum_over_ranks(hits).cpu(), sum_over_ranks(confusion).cpu()
    top1, top5 = (100 * hits.double() / len(images)).tolist()
    side = round(len(confusion) ** 0.5)
    return Accuracy(top1, top5), confusion.view(side, side)

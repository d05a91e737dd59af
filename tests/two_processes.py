"""What commands/test_knn.py runs in two processes; a file of its own, so that they import little."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mgd_ssl.data.loader import Reading
from mgd_ssl.data.sources import Labelled, open_images
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation import features as features_module
from mgd_ssl.evaluation.accuracy import Accuracy
from mgd_ssl.evaluation.config import EmbedConfig
from mgd_ssl.evaluation.embedding import embed
from mgd_ssl.evaluation.features import FeatureExtractor, Features
from mgd_ssl.evaluation.knn import knn_accuracies
from mgd_ssl.run.runtime import Runtime, on_rank_zero

CPU = Runtime(torch.device("cpu"), None, torch.contiguous_format, 1)


class Pixels(nn.Module):
    """Deterministic features: the mean colours of a grid."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 48]."""
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def everything(folder: Path, counts: Sequence[int]) -> tuple[list[Features], dict[tuple[int, float], Accuracy]]:
    """Features of the first images, for some counts, and k-NN of the last on the first."""
    images = on_rank_zero(lambda: open_images(folder))
    labelled, four = Labelled(images, images.labels()[0]), Reading(batch_size=4)
    found = [FeatureExtractor(Pixels(), CPU, 32)(labelled, np.arange(n), four) for n in counts]
    return found, knn_accuracies(found[0], found[-1], [1, 5, 20], [0.07, 0.5])


def broken(folder: Path) -> str:
    """The sentence told when features of images 3 and 4 of 7 (on different ranks) are not finite."""

    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            features = Pixels()(images)
            features[features.sum(1) > limit] = float("nan")
            return features

    images = on_rank_zero(lambda: open_images(folder))
    labelled = Labelled(images, images.labels()[0])
    limit = -float("inf")  # all of them
    with pytest.raises(UserError) as caught:
        FeatureExtractor(Broken(), CPU, 32)(labelled, np.arange(3, 7))
    return str(caught.value)


def rank_of_two(rank: int, folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    features_module.GATHERED_ROWS = 5  # several parts, and a last one that is short
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    try:
        found, accuracies = everything(folder, [47, 1, 12])
        sentence = broken(folder)
    finally:
        dist.destroy_process_group()
    content = [([f.values.tolist(), f.labels.tolist()]) for f in found], list(accuracies.items()), sentence
    (out / f"{rank}.json").write_text(json.dumps(content))


def embed_as_rank_of_two(rank: int, settings: dict[str, Any], folder: Path) -> None:
    """Rank 0 and 1 of `mgd-ssl embed`."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    embed(EmbedConfig(**settings))
    dist.destroy_process_group()

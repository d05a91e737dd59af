"""Bags of images: the nearest of every image by a teacher's features, in bounded memory."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from mgd_ssl.config import Decoding
from mgd_ssl.console import progress_bar
from mgd_ssl.data.bags import save_bags
from mgd_ssl.data.images import Images
from mgd_ssl.data.loader import Reading, one_pass
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.data.sources import open_images
from mgd_ssl.data.unreadable import TOLD
from mgd_ssl.data.upload import Upload
from mgd_ssl.errors import TrainingError, UserError
from mgd_ssl.evaluation.config import BagsConfig
from mgd_ssl.evaluation.knn_table import PassAccount
from mgd_ssl.files import check_place, writing
from mgd_ssl.networks.placing import placed
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.run.folder import find_weights
from mgd_ssl.run.runtime import Runtime, process

ASKED = 4096  # images whose neighbours are looked for at once


def make_bags(config: BagsConfig) -> dict[str, Any]:
    """Write the bags of all images to a file; returns what they are.

    Raises:
        UserError: when a setting, a file or a folder is at fault; nothing is written.
        DiskError: when the disk is full.
    """
    check_place(config.out.parent)
    images = open_images(config.images, Decoding(config.background, config.max_pixels))
    if config.neighbours >= len(images):
        raise UserError(
            f"neighbours is {config.neighbours} and {config.images} holds {len(images)} images: set it below that"
        )
    backbone, report = load_backbone(find_weights(config.teacher), config.teacher_arch)
    with process(config.runtime) as runtime, writing(config.out):
        network = placed(backbone.eval(), runtime.device, runtime.memory_format)
        with tempfile.TemporaryDirectory(dir=config.out.parent, prefix=".bags_") as folder:
            features = write_features(Path(folder) / "features.npy", network, images, config, runtime)
            neighbours = nearest_others(features, config.neighbours, config.shard_images)
    about = {
        "fingerprint": images.fingerprint(), "num_images": len(images), "neighbours": config.neighbours,
        "teacher": {"arch": report.arch, "sha256": report.sha256}, "image_size": config.image_size,
    }  # fmt: skip
    save_bags(config.out, neighbours, about)
    return about


@torch.inference_mode()
def write_features(
    path: Path, network: torch.nn.Module, images: Images, config: BagsConfig, runtime: Runtime
) -> np.ndarray:
    """Features of all images' centre crops, of unit length: [M, D] float32 in a file, which is mapped and not held.

    Raises:
        UserError: when a feature is not finite, or too many images cannot be read.
    """
    upload, account, done = Upload(runtime), PassAccount(), 0
    stored: np.ndarray | None = None
    with ExitStack() as stack:
        reading = Reading(
            batch_size=config.batch_size, workers=runtime.data_workers(config.workers), account=account,
            progress=progress_bar(stack, "features", len(images)),
        )  # fmt: skip
        crops = CentreCrops(images, config.image_size, seed=0)
        for batch in stack.enter_context(one_pass(crops, np.arange(len(images)), reading)):
            with runtime.autocast():
                rows = network(upload.images(batch.images))
            rows = F.normalize(rows.float(), dim=1).cpu()
            if not rows.isfinite().all():
                raise UserError(f"{config.teacher} gives features that are not finite: pass another teacher")
            if stored is None:
                shape = len(images), rows.shape[1]
                stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            stored[done : done + len(rows)] = rows.numpy()
            done += len(rows)
    _check_readable(account, config, len(images))
    assert stored is not None
    return stored


def _check_readable(account: PassAccount, config: BagsConfig, count: int) -> None:
    if len(account.files) > config.max_unreadable * count:
        named = ", ".join(list(account.files)[:TOLD])
        raise TrainingError(
            f"{len(account.files)} of {count} images are unreadable ({named}), more than max_unreadable "
            f"{config.max_unreadable:g}: mend them, or raise it"
        )


def nearest_others(features: np.ndarray, count: int, shard: int) -> np.ndarray:
    """The nearest rows of every row by inner product, nearest first, without itself: [M, count] int32.

    Args:
        features: [M, D] of unit length; held are `shard` rows of it at a time, and some that ask.
        count: neighbours of each, below M.
        shard: rows of an index.
    """
    total, width = features.shape
    scores = np.full((total, count + 1), -np.inf, dtype=np.float32)
    found = np.full((total, count + 1), -1, dtype=np.int32)
    for start in range(0, total, shard):
        bank = np.ascontiguousarray(features[start : start + shard])
        index = faiss.IndexFlatIP(width)
        index.add(bank)
        for first in range(0, total, ASKED):
            rows = slice(first, min(first + ASKED, total))
            queries = np.ascontiguousarray(features[rows])
            new_scores, new = index.search(queries, min(count + 1, len(bank)))
            both = np.concatenate([scores[rows], new_scores], axis=1)
            places = np.concatenate([found[rows], new.astype(np.int32) + start], axis=1)
            best = np.argsort(-both, axis=1, kind="stable")[:, : count + 1]
            scores[rows] = np.take_along_axis(both, best, axis=1)
            found[rows] = np.take_along_axis(places, best, axis=1)
    return _without_itself(found, count)


def _without_itself(found: np.ndarray, count: int) -> np.ndarray:
    """[M, count + 1] -> [M, count]; where equal images have pushed a row out of its own list, the last goes."""
    itself = found == np.arange(len(found))[:, None]
    itself[~itself.any(axis=1), -1] = True
    return found[~itself].reshape(len(found), count)

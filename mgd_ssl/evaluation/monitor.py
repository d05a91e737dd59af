"""k-NN accuracy of the student while it trains, between a random encoder's and the teacher's."""

import hashlib
import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
from torch import nn

from mgd_ssl.config import USUAL, Decoding, KNNConfig
from mgd_ssl.data.images import Images
from mgd_ssl.data.order import subset
from mgd_ssl.data.sources import scan_labelled
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.accuracy import Accuracy
from mgd_ssl.evaluation.features import Leaving, extract_features
from mgd_ssl.evaluation.knn import knn_accuracy, protocol
from mgd_ssl.run.runtime import Runtime, on_rank_zero
from moco.dist import rank, world_size


class KNNMonitor:
    """Evaluates trunks on one labelled data set with one protocol.

    Args:
        config: folders, k, temperature.
        runtime: device and precision.
        image_size: edge of the crops in pixels.
        seed: picks the voting images where the folder holds more than `max_bank`.
        workers: data processes.
        skipped: opens the account of a folder's unreadable images, by a short name of the folder.
        decoding: how the images become pixels.

    Raises:
        UserError: for missing folders, or classes that differ between them.
    """

    def __init__(
        self,
        config: KNNConfig,
        runtime: Runtime,
        *,
        image_size: int,
        seed: int,
        workers: int,
        skipped: Callable[[str, Images], SkippedFiles],
        decoding: Decoding = USUAL,
    ) -> None:
        if config.train is None or config.val is None:
            missing = "knn.train" if config.train is None else "knn.val"
            raise UserError(f"{missing} is not set: k-NN needs both labelled folders, or neither")
        self.config, self.runtime = config, runtime
        self.image_size, self.workers = image_size, workers
        train, val = config.train, config.val
        (self.bank, self.bank_labels), (self.queries, self.query_labels) = scan_labelled(train, val, decoding)
        self.skipped_bank = skipped("knn_train", self.bank)
        self.skipped_queries = skipped("knn_val", self.queries)
        self.bank_indices = subset(len(self.bank), config.max_bank, seed, "knn bank")
        if config.k > len(self.bank_indices):
            raise UserError(f"knn.k is {config.k} but only {len(self.bank_indices)} images vote: choose a smaller k")

    @cached_property
    def identity(self) -> str:
        """The protocol with a hash of what votes and what is classified: numbers of one identity may be compared."""

        def contents() -> str:
            digest = hashlib.sha256((self.bank.fingerprint() + self.queries.fingerprint()).encode())
            for array in (self.bank_labels, self.query_labels, self.bank_indices):
                digest.update(array.astype(np.int64).tobytes())
            return digest.hexdigest()

        return f"{self.protocol}, images {on_rank_zero(contents)}"

    @property
    def protocol(self) -> str:
        """What a number of this monitor means."""
        config = self.config
        line = protocol(config.k, config.temperature, f"{len(self.bank_indices)}", len(self.queries), self.image_size)
        return line + self.bank.decoding.told()

    @property
    def num_images(self) -> int:
        """Images of both folders that this process looks at in an evaluation, at most."""
        return sum(math.ceil(count / world_size()) for count in (len(self.bank_indices), len(self.queries)))

    def evaluate(
        self,
        trunk: nn.Module,
        progress: Callable[[int], None] = lambda done: None,
        leaving: Leaving = lambda batches, most: batches,
    ) -> Accuracy:
        """Top-1 and top-5 of a trunk [N, 3, H, W] -> [N, d], equal on all ranks; `progress` is told how many images of
        both folders are done, `leaving` is as in `extract_features`."""
        before = len(range(rank(), len(self.bank_indices), world_size()))
        bank, queries = (
            extract_features(
                trunk, images, labels, indices, self.runtime,
                image_size=self.image_size, workers=self.workers, report=skipped.note,
                progress=lambda done, start=start: progress(start + done), leaving=leaving,  # type: ignore[misc]
            )
            for images, labels, indices, skipped, start in (
                (self.bank, self.bank_labels, self.bank_indices, self.skipped_bank, 0),
                (self.queries, self.query_labels, np.arange(len(self.queries)), self.skipped_queries, before),
            )
        )  # fmt: skip
        self.skipped_bank.share()
        self.skipped_queries.share()
        return knn_accuracy(bank, queries, self.config.k, self.config.temperature, self.runtime.device)

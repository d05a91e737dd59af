"""k-NN accuracy of the student while it trains, between a random encoder's and the teacher's."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from mgd_ssl.config import USUAL, Decoding, KNNConfig
from mgd_ssl.data.images import Images
from mgd_ssl.data.loader import Reading
from mgd_ssl.data.order import subset
from mgd_ssl.data.sources import scan_labelled
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.accuracy import Accuracy
from mgd_ssl.evaluation.features import FeatureExtractor
from mgd_ssl.evaluation.knn import knn_accuracy, protocol
from mgd_ssl.run.log import RunLog, logger
from mgd_ssl.run.runtime import Runtime, on_rank_zero
from moco.dist import rank, world_size


class KNNMonitor:
    """Evaluates trunks on one labelled data set with one protocol.

    Args:
        config: folders, k, temperature.
        runtime: device and precision.
        image_size: edge of the crops in pixels.
        seed: picks the voting images where the folder holds more than `max_bank`.
        skipped: opens the account of a folder's unreadable images, by a short name of the folder.
        reading: how images are gone through while an account is kept.
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
        skipped: Callable[[str, Images], SkippedFiles],
        reading: Callable[[SkippedFiles], Reading],
        decoding: Decoding = USUAL,
    ) -> None:
        if config.train is None or config.val is None:
            missing = "knn.train" if config.train is None else "knn.val"
            raise UserError(f"{missing} is not set: k-NN needs both labelled folders, or neither")
        self.config, self.runtime = config, runtime
        self.image_size, self.reading = image_size, reading
        self.lines: dict[str, float] = {}  # accuracy of the random encoder and the teacher
        self.lines_of = ""  # identity of the evaluation that measured them
        train, val = config.train, config.val
        voting, classified = self.labelled = scan_labelled(train, val, decoding)
        (self.bank, self.bank_labels), (self.queries, self.query_labels) = voting, classified
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

    def state(self) -> dict[str, Any]:
        """What was measured once."""
        return {"lines": self.lines, "lines_of": self.lines_of}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.lines, self.lines_of = state["lines"], state["lines_of"]

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

    def compare(
        self,
        student: nn.Module,
        initial: Callable[[], nn.Module] | None,
        teacher: nn.Module | None,
        log: RunLog,
        step: int,
    ) -> dict[str, Any]:
        """A row of metrics.jsonl: accuracy of the student's trunk, beside that of its initial state and the teacher's.

        Those two are measured once; anew when the evaluation was switched on or changed while the run went on.

        Args:
            student: [N, 3, H, W] -> [N, d].
            initial: makes a trunk with random weights; None: the student is one.
            teacher: likewise, if there is one.
            log: of the run.
            step: number of finished steps.
        """
        accuracy = self._shown(student, "student", log)
        if self.lines_of != self.identity:
            logger.info("%s", self.protocol)
            random = accuracy if initial is None else self._shown(initial(), "random encoder", log)
            lines = {"random_top1": random.top1, "random_top5": random.top5}
            if teacher is not None:
                top1, top5 = self._shown(teacher, "teacher", log)
                lines |= {"teacher_top1": top1, "teacher_top5": top5}
            self.lines, self.lines_of = lines, self.identity
        teacher_top1 = self.lines.get("teacher_top1")
        logger.info(
            "k-NN at step %d: top-1 %.2f, top-5 %.2f (random encoder %.2f%s)",
            step,
            *accuracy,
            self.lines["random_top1"],
            "" if teacher_top1 is None else f", teacher {teacher_top1:.2f}",
        )
        return {**accuracy._asdict(), **self.lines, "protocol": self.protocol}

    def _shown(self, trunk: nn.Module, whose: str, log: RunLog) -> Accuracy:
        with log.part(f"k-NN of the {whose}", self.num_images) as progress:
            return self.evaluate(trunk, progress)

    def evaluate(self, trunk: nn.Module, progress: Callable[[int], None] = lambda done: None) -> Accuracy:
        """Top-1 and top-5 of a trunk [N, 3, H, W] -> [N, d], equal on all ranks; `progress` is told how many images of
        both folders are done."""
        before = len(range(rank(), len(self.bank_indices), world_size()))
        features = FeatureExtractor(trunk, self.runtime, self.image_size)
        bank, queries = (
            features(
                labelled,
                indices,
                replace(
                    self.reading(account),
                    progress=lambda done, start=start: progress(start + done),  # type: ignore[misc]
                ),
            )
            for labelled, indices, account, start in (
                (self.labelled[0], self.bank_indices, self.skipped_bank, 0),
                (self.labelled[1], np.arange(len(self.queries)), self.skipped_queries, before),
            )
        )
        self.skipped_bank.share()
        self.skipped_queries.share()
        return knn_accuracy(bank, queries, self.config.k, self.config.temperature, self.runtime.device)

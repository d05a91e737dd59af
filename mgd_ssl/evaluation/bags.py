"""Bags of images: the nearest of every image by a teacher's features, over processes and in bounded memory."""

import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mgd_ssl.config import Decoding
from mgd_ssl.data.bags import about_bags, save_bags
from mgd_ssl.data.decode import DECODER_VERSION
from mgd_ssl.data.samples import CROP_VERSION
from mgd_ssl.data.sources import open_images
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.config import BagsConfig
from mgd_ssl.evaluation.feature_rows import FeatureRows
from mgd_ssl.evaluation.features import FeatureExtractor
from mgd_ssl.evaluation.neighbours import Neighbours
from mgd_ssl.evaluation.partwise import Partwise
from mgd_ssl.files import check_place
from mgd_ssl.networks.placing import placed
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.run.folder import find_weights
from mgd_ssl.run.runtime import Runtime, on_rank_zero, process, shared
from moco.dist import world_size


def make_bags(config: BagsConfig) -> dict[str, Any]:
    """Write the bags of all images to a file, or go on with what is there; returns what they are, on all ranks.

    Raises:
        UserError: when a setting, a file or a folder is at fault.
        DiskError: when a file cannot be written; what was computed stays.
        Interrupted: on all ranks, after a signal; what was computed stays.
    """
    check_place(config.out.parent)
    with process(config.runtime) as runtime:
        job = Job(config, runtime)
        about = on_rank_zero(job.made)
        if about is None:
            job.compute()
            about = job.about
        return about


class Job:
    """The bags of one source by one teacher.

    Args:
        config: of the command.
        runtime: device and precision.
    """

    def __init__(self, config: BagsConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        decoding = Decoding(config.background, config.max_pixels)
        self.images = on_rank_zero(lambda: open_images(config.images, decoding))
        if config.neighbours >= len(self.images):
            raise UserError(
                f"neighbours is {config.neighbours} and {config.images} holds {len(self.images)} images: set it below "
                "that"
            )
        path = on_rank_zero(lambda: find_weights(config.teacher))
        backbone, report = load_backbone(path, config.teacher_arch)
        network = placed(backbone, runtime.device, runtime.memory_format)
        if config.runtime.compile:
            network.compile()
        self.extract = FeatureExtractor(network, runtime, config.image_size)
        state = on_rank_zero(self.images.state)
        depends = [report.sha256, state, str(config.image_size), str(runtime.precision)]
        depends += [f"d{DECODER_VERSION}c{CROP_VERSION}"]
        self.features_key = sha256("\n".join(depends).encode()).hexdigest()
        self.key = sha256(f"{self.features_key}\n{config.neighbours}".encode()).hexdigest()
        self.about = {
            "fingerprint": self.images.fingerprint(), "num_images": len(self.images), "neighbours": config.neighbours,
            "teacher": {"arch": report.arch, "sha256": report.sha256}, "image_size": config.image_size,
            "key": self.key,
        }  # fmt: skip

    def made(self) -> dict[str, Any] | None:
        """What a finished file of these bags says, None where there is no file.

        Raises:
            UserError: when there is another file.
        """
        out = self.config.out
        if not out.exists():
            return None
        if about_bags(out).get("key") != self.key:
            raise UserError(
                f"{out} is there already, of other settings, images or weights: remove it, or choose another --out"
            )
        return self.about | {"found": True}

    def compute(self) -> None:
        """Write the file: features of all images, then who is near whom."""
        config, folder = self.config, self.config.out.with_name(f".{self.config.out.name}.unfinished")
        with (
            Partwise.opened(folder / "features", self.features_key) as features,
            Partwise.opened(folder / "neighbours", self.key, np.int32) as neighbours,
        ):
            features.fill(FeatureRows(self.images, self.extract, config, gaps=False).work())
            table = self._table(on_rank_zero(lambda: (features.rows.path, len(self.images), features.rows.shape[0])))
            neighbours.fill(Neighbours(table, config.neighbours, config.shard_images, self.runtime.device).work())
            on_rank_zero(lambda: save_bags(config.out, neighbours.rows.table(), self.about))
            on_rank_zero(neighbours.discard)
            on_rank_zero(features.discard)
        on_rank_zero(lambda: shutil.rmtree(folder, ignore_errors=True))

    def _table(self, where: tuple[Path, int, int]) -> np.ndarray:
        """The features [M, D] that rank 0 has written, mapped by every rank.

        Raises:
            UserError: on all ranks, when one of them does not see the file.
        """
        path, *shape = where
        here = path.is_file() and path.stat().st_size == 4 * shape[0] * shape[1]
        if world_size() > 1 and "" in shared("here" if here else ""):
            raise UserError(
                f"{path} is not seen by all processes: choose an --out on a file system that all hosts share"
            )
        return np.memmap(path, np.float32, "r", shape=(shape[0], shape[1]))

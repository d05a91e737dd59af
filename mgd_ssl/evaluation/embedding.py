"""Features of all images of a source in one file, sharded over processes, continued where they stopped."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from mgd_ssl.data.decode import DECODER_VERSION
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.images import Images
from mgd_ssl.data.loader import Reading
from mgd_ssl.data.samples import CROP_VERSION, decoding_as_in
from mgd_ssl.data.sources import Labelled, open_images
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation import feature_files
from mgd_ssl.evaluation.config import EmbedConfig
from mgd_ssl.evaluation.feature_files import Table
from mgd_ssl.evaluation.feature_rows import FeatureRows, Notes
from mgd_ssl.evaluation.features import FeatureExtractor
from mgd_ssl.evaluation.layer import LayerOutput
from mgd_ssl.evaluation.partwise import Partwise
from mgd_ssl.evaluation.search import nearest
from mgd_ssl.evaluation.unfinished import UnfinishedRows
from mgd_ssl.files import ELSEWHERE, check_place, read_json, whole_file, write_whole, writing
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import trunk
from mgd_ssl.networks.placing import placed
from mgd_ssl.networks.untrained import find_evaluated, load_evaluated
from mgd_ssl.run.environment import environment
from mgd_ssl.run.folder import run_image_size, run_of
from mgd_ssl.run.runtime import Runtime, on_rank_zero, process
from moco.dist import world_size


class Neighbour(NamedTuple):
    """An image near the one that was searched."""

    similarity: float
    name: str
    label: str


class Embedded(NamedTuple):
    """What was written."""

    path: Path
    num_images: int
    shape: tuple[int, ...]  # of one image's features
    unreadable: dict[str, str]  # files whose row is not a number, and why
    neighbours: list[Neighbour]
    found: bool  # it was there already


def embed(config: EmbedConfig) -> Embedded:
    """Write features, or go on with what is there; the same on all ranks.

    Raises:
        UserError: when a setting, a file or a folder is at fault.
        DiskError: when the file cannot be written; what was computed stays.
        Interrupted: on all ranks, after a signal; what was computed stays.
    """
    out = config.out
    check_place(out.parent)
    feature_files.check_library(out)
    if config.maps and config.layer is None:
        raise UserError("maps is true without a layer: pass --layer, the module whose maps are wanted")
    with process(config.runtime) as runtime:
        job = Job.open(config, runtime)
        found = on_rank_zero(lambda: saved(out, job.key))
        if found is None:
            found = job.compute()
        neighbours = job.search() if config.search is not None else []
        shape, unreadable = tuple(found["shape"]), found["unreadable"]
        return Embedded(out, len(job.images), shape, unreadable, neighbours, found["found"])


def beside(out: Path) -> Path:
    """The file that says what the features are: `features.npy.json`."""
    return out.with_name(f"{out.name}.json")


def saved(out: Path, key: str) -> dict[str, Any] | None:
    """What lies beside a finished file of this key, None where there is no file.

    Raises:
        UserError: when there is another file.
    """
    if not out.exists():
        return None
    content = read_json(beside(out)) if beside(out).exists() else {}
    if content.get("key") != key:
        raise UserError(
            f"{out} is there already, of other settings, images or weights: remove it, or choose another --out"
        )
    return content | {"found": True}


class Job:
    """Features of one source by one network.

    Args:
        config: of the command.
        runtime: device and precision.
        network: on the device: [N, 3, H, W] -> [N, d].
        report: how it was loaded.
        images: of the source.
    """

    def __init__(
        self, config: EmbedConfig, runtime: Runtime, network: nn.Module, report: LoadReport, images: Images
    ) -> None:
        self.config, self.runtime, self.network = config, runtime, network
        self.report, self.images = report, images
        self.image_size = config.image_size or run_image_size(run_of(report.path))
        self.key = on_rank_zero(self._key)
        self.extract = FeatureExtractor(network, runtime, self.image_size, config.normalise)

    @classmethod
    def open(cls, config: EmbedConfig, runtime: Runtime) -> "Job":
        """Load the network and list the images."""
        path = on_rank_zero(lambda: find_evaluated(config.checkpoint))
        backbone, report = load_evaluated(path, config.arch)
        network = trunk(backbone)
        if config.layer is not None:
            network = LayerOutput(network, config.layer, config.maps)
        network = placed(network, runtime.device, runtime.memory_format)
        if config.runtime.compile:
            network.compile()
        decoding = decoding_as_in(run_of(path), config.background, config.max_pixels)
        return cls(config, runtime, network, report, on_rank_zero(lambda: open_images(config.data, decoding)))

    def _key(self) -> str:
        """Hash of all that the features depend on."""
        config, parts = self.config, [self.report.sha256, self.images.state(), str(self.image_size)]
        parts += [config.layer or "", str(config.maps), str(config.normalise), config.runtime.precision]
        return sha256("\n".join([*parts, f"d{DECODER_VERSION}c{CROP_VERSION}"]).encode()).hexdigest()

    def compute(self) -> dict[str, Any]:
        """Fill the file; what lies beside it is returned."""
        out = self.config.out
        with Partwise.opened(out.with_name(f".{out.name}.unfinished"), self.key) as table:
            table.fill(FeatureRows(self.images, self.extract, self.config, self.shape).work())
            content = on_rank_zero(lambda: self._finish(table.rows))
            on_rank_zero(table.discard)
        return content | {"found": False}

    def shape(self, values: np.ndarray) -> tuple[int, ...]:
        """Of one image's features."""
        return self.network.shape if isinstance(self.network, LayerOutput) else values.shape[1:]

    def _finish(self, rows: UnfinishedRows) -> dict[str, Any]:
        """Write what lies beside the file, then the file."""
        out, labelled = self.config.out, self.labels()
        content = {
            "key": self.key, "shape": list(rows.shape), "images": len(self.images), "arch": self.report.arch,
            "weights": str(self.report.path), "sha256": self.report.sha256, "data": str(self.config.data),
            "layer": self.config.layer, "normalised": self.config.normalise, "image_size": self.image_size,
            "precision": self.config.runtime.precision, "background": self.images.decoding.background,
            "unreadable": rows.unreadable, "environment": environment(),
        }  # fmt: skip
        with writing(out, ELSEWHERE):
            write_whole(beside(out), json.dumps(content, indent=2).encode())
            with whole_file(out) as file:
                feature_files.write(Table(rows.table(), rows.shape, self.images, *labelled), file, out)
        return content

    def labels(self) -> tuple[np.ndarray | None, list[str]]:
        """Class of every image, and the classes' names; nothing where there are none."""
        try:
            return self.images.labels()
        except UserError:
            return None, []

    def search(self) -> list[Neighbour]:
        """The images nearest to one, by the cosine of their features."""
        path, config = self.config.search, self.config
        assert path is not None
        if not path.is_file():
            raise UserError(f"{path} is not a file: pass --search an image")
        query = ImageList(path.absolute().parent, [path.name])
        query.decoding = self.images.decoding
        noted = Notes()
        extract = FeatureExtractor(self.network, self.runtime, self.image_size)
        found = extract(
            Labelled(query, np.zeros(1, np.int64)), np.zeros(world_size(), np.int64), Reading(account=noted)
        )
        return on_rank_zero(lambda: self._nearest(found.values[:1], config.nearest))

    def _nearest(self, query: np.ndarray, k: int) -> list[Neighbour]:
        best: list[tuple[float, int]] = []
        start = 0
        for values in feature_files.read(self.config.out):
            rows = np.flatnonzero(np.isfinite(values).all(axis=1))
            norms = np.linalg.norm(values[rows], axis=1, keepdims=True)
            bank = np.ascontiguousarray(values[rows] / np.maximum(norms, 1e-12), dtype=np.float32)
            if len(bank):
                similarity, places = nearest(bank, query, min(k, len(bank)), self.runtime.device)
                best += [
                    (float(s), start + int(rows[place])) for s, place in zip(similarity[0], places[0], strict=True)
                ]
                best = sorted(best, key=lambda each: (-each[0], each[1]))[:k]
            start += len(values)
        labels, classes = self.labels()
        names = (("" if labels is None else classes[int(labels[row])]) for _, row in best)
        return [Neighbour(s, self.images.name(row), label) for (s, row), label in zip(best, names, strict=True)]

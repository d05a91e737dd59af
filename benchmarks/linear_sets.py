"""Data sets on which searches for a learning rate can go wrong, each in a way of its own; for `benchmarks.linear`."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.sources import Labelled
from mgd_ssl.demo.textures import ImageSet
from mgd_ssl.evaluation.features import FeatureExtractor, Features
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.run.runtime import Runtime

VAL = 6000  # rows of a synthetic validation set
EDGE = 16  # of the images whose pixels are features
NETWORK_SEED = 0


class Split(NamedTuple):
    """A data set."""

    train: Features
    val: Features


@dataclass(frozen=True)
class Gaussian:
    """Gaussian classes, [count, dim] for training."""

    count: int  # training rows
    dim: int  # of a feature vector
    classes: int
    noise: float  # deviation around the class's mean, whose entries have deviation i ** -0.5 at feature i
    wrong_labels: float = 0.0  # share of the training labels that is drawn anew
    common: float = 0.0  # deviation of a part that all features share, which makes them correlated
    # None: rectified, as the features of a network are. Else a rotation of features whose means and noise both have
    # deviation i ** -decay: standardising every feature does not make this well-conditioned.
    decay: float | None = None

    def split(self, val: int = VAL) -> Split:
        """Training set, and a validation set of so many rows."""
        return Split(self.drawn(self.count, 1, self.wrong_labels), self.drawn(val, 2, 0))

    def drawn(self, rows: int, seed: int, wrong_labels: float) -> Features:
        """Rows of the same classes, whatever the seed."""
        fixed = np.random.default_rng(0)
        spectrum = np.arange(1, self.dim + 1) ** -(0.5 if self.decay is None else self.decay)
        means = fixed.standard_normal((self.classes, self.dim)) * spectrum
        shared = self.common * fixed.standard_normal(self.dim)
        generator = np.random.default_rng(seed)
        labels = generator.integers(self.classes, size=rows)
        deviation = self.noise * (1 if self.decay is None else spectrum)
        x = means[labels] + deviation * generator.standard_normal((rows, self.dim))
        if self.decay is None:
            x = np.maximum(0, x + 0.2)
        else:
            x = x @ np.linalg.qr(fixed.standard_normal((self.dim, self.dim)))[0]
        x = x + generator.standard_normal((rows, 1)) * shared
        drawn_anew = generator.random(rows) < wrong_labels
        return Features(x.astype(np.float32), np.where(drawn_anew, generator.integers(self.classes, size=rows), labels))


def demo(of: Callable[[ImageList], NDArray[np.float32]]) -> Split:
    """Features of the demo's images: 2400 for training, of 16 classes."""

    def split(folder: Path) -> Features:
        images = ImageList.scan(folder)
        return Features(of(images), images.labels()[0])

    with tempfile.TemporaryDirectory() as folder:
        ImageSet().write(Path(folder))
        return Split(split(Path(folder) / "train"), split(Path(folder) / "val"))


def pixels(images: ImageList) -> NDArray[np.float32]:
    """Grey values of small copies: [n, EDGE * EDGE]."""
    small = [images.open(i).convert("L").resize((EDGE, EDGE), Image.Resampling.BOX) for i in range(len(images))]
    return np.stack([np.asarray(image, dtype=np.float32).ravel() for image in small])


def untrained(runtime: Runtime) -> Callable[[ImageList], NDArray[np.float32]]:
    """Features of a network with random weights."""
    torch.manual_seed(NETWORK_SEED)
    network = build_backbone("thin_resnet10")
    network.fc = torch.nn.Identity()
    network.to(runtime.device).to(memory_format=runtime.memory_format)

    def of(images: ImageList) -> NDArray[np.float32]:
        rows = np.arange(len(images))
        labelled = Labelled(images, rows)
        return FeatureExtractor(network, runtime, 48, normalise=False)(labelled, rows).values

    return of


def sets(runtime: Runtime) -> dict[str, Callable[[], Split]]:
    """All of them by name."""
    return {
        "little noise": Gaussian(10_000, 128, 25, 0.5).split,
        "noise": Gaussian(10_000, 128, 25, 1.0).split,
        "more noise": Gaussian(10_000, 128, 25, 2.0).split,
        "many images": Gaussian(50_000, 64, 20, 1.0).split,
        "18 images a class": Gaussian(2000, 256, 100, 0.7).split,
        "fewer images than it takes": Gaussian(1500, 512, 10, 1.5).split,
        "40 % wrong labels": Gaussian(12_000, 128, 20, 0.7, wrong_labels=0.4).split,
        "ill-conditioned": Gaussian(12_000, 128, 20, 1.0, decay=1.0).split,
        "correlated": Gaussian(12_000, 128, 20, 0.7, common=4.0).split,
        "demo, pixels": partial(demo, pixels),
        "demo, untrained network": lambda: demo(untrained(runtime)),
    }

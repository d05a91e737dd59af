"""Data sets on which searches for a learning rate can go wrong, each in a way of its own; for `benchmarks.linear`."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mgd_ssl.data.folder import ImageList
from mgd_ssl.demo.textures import make_image_set
from mgd_ssl.evaluation.features import Features, extract_features
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.run.runtime import Runtime

Pair = tuple[Features, Features]  # training and validation set
VAL = 6000  # rows of a synthetic validation set
EDGE = 16  # of the images whose pixels are features
NETWORK_SEED = 0


def gaussian(
    count: int,
    dim: int,
    classes: int,
    noise: float,
    *,
    wrong_labels: float = 0.0,
    common: float = 0.0,
    decay: float | None = None,
) -> Pair:
    """Gaussian classes, [count, dim] for training.

    Args:
        count: training rows.
        dim: of a feature vector.
        classes: C.
        noise: deviation around the class's mean, whose entries have deviation i ** -0.5 at feature i.
        wrong_labels: share of the training labels that is drawn anew.
        common: deviation of a part that all features share, which makes them correlated.
        decay: None: rectified, as the features of a network are. Else a rotation of features whose means and noise
            both have deviation i ** -decay: standardising every feature does not make this well-conditioned.
    """
    fixed = np.random.default_rng(0)
    spectrum = np.arange(1, dim + 1) ** -(0.5 if decay is None else decay)
    means = fixed.standard_normal((classes, dim)) * spectrum
    shared = common * fixed.standard_normal(dim)
    rotation = np.linalg.qr(fixed.standard_normal((dim, dim)))[0]

    def draw(rows: int, seed: int, wrong: float) -> Features:
        generator = np.random.default_rng(seed)
        labels = generator.integers(classes, size=rows)
        x = means[labels] + noise * (1 if decay is None else spectrum) * generator.standard_normal((rows, dim))
        x = np.maximum(0, x + 0.2) if decay is None else x @ rotation
        x = x + generator.standard_normal((rows, 1)) * shared
        drawn_anew = generator.random(rows) < wrong
        return Features(x.astype(np.float32), np.where(drawn_anew, generator.integers(classes, size=rows), labels))

    return draw(count, 1, wrong_labels), draw(VAL, 2, 0)


def demo(of: Callable[[ImageList], NDArray[np.float32]]) -> Pair:
    """Features of the demo's images: 2400 for training, of 16 classes."""

    def split(folder: Path) -> Features:
        images = ImageList.scan(folder)
        return Features(of(images), images.labels()[0])

    with tempfile.TemporaryDirectory() as folder:
        make_image_set(Path(folder))
        return split(Path(folder) / "train"), split(Path(folder) / "val")


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
        return extract_features(network, images, rows, rows, runtime, image_size=48, normalise=False).values

    return of


def sets(runtime: Runtime) -> dict[str, Callable[[], Pair]]:
    """All of them by name."""
    return {
        "little noise": lambda: gaussian(10_000, 128, 25, 0.5),
        "noise": lambda: gaussian(10_000, 128, 25, 1.0),
        "more noise": lambda: gaussian(10_000, 128, 25, 2.0),
        "many images": lambda: gaussian(50_000, 64, 20, 1.0),
        "18 images a class": lambda: gaussian(2000, 256, 100, 0.7),
        "fewer images than it takes": lambda: gaussian(1500, 512, 10, 1.5),
        "40 % wrong labels": lambda: gaussian(12_000, 128, 20, 0.7, wrong_labels=0.4),
        "ill-conditioned": lambda: gaussian(12_000, 128, 20, 1.0, decay=1.0),
        "correlated": lambda: gaussian(12_000, 128, 20, 0.7, common=4.0),
        "demo, pixels": lambda: demo(pixels),
        "demo, untrained network": lambda: demo(untrained(runtime)),
    }

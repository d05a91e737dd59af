"""What the network sees, and where it puts the validation images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mgd_ssl.config import Decoding, PretrainConfig, RuntimeConfig
from mgd_ssl.data.images import Images
from mgd_ssl.data.order import TrainingOrder, subset
from mgd_ssl.data.samples import CentreCrops, TwoViews, decoding_of, view_policy
from mgd_ssl.data.sources import Labelled, is_there, open_images
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.features import FeatureExtractor, Features
from mgd_ssl.networks.backbones import trunk
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.report.figures import COLOURS, Picture, drawn, label, legend, picture
from mgd_ssl.run.read import Run
from mgd_ssl.run.runtime import process

SHOWN_IMAGES = 8  # in a grid of views
MAX_GRIDS = 3
MAX_POINTS = 1000  # images in an embedding
MAX_CLASSES = 20  # that colours and markers can tell apart
MARKERS = "osD^vP"
SAME_VIEWS = ("backend", "workers", "max_unreadable")  # settings of the data that do not show in a grid of views
GAP = 2  # pixels between the views of a grid


class Folders:
    """Folders and other sources of images, each opened once for a report."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, Decoding], Images] = {}

    def open(self, root: Path, how: Decoding) -> Images:
        """The images of a source, to be decoded in a given way.

        Raises:
            UserError: when there are none.
        """
        if not is_there(root):
            raise UserError(f"{root} is no longer there")
        if (root, how) not in self._known:
            self._known[root, how] = open_images(root, how)
        return self._known[root, how]


# views


def view_pictures(runs: Sequence[Run], folders: Folders, notes: list[str]) -> list[Picture]:
    """A grid of view pairs for every kind of data among the runs; what is missing is told in `notes`."""
    kinds: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        data = {
            key: value
            for key, value in run.config["data"].items()
            if key not in ("backend", "workers", "max_unreadable")
        }
        batch = run.config["optim"]["batch_size"]
        kinds.setdefault((str(data), str(run.data), str(run.seed), str(batch)), []).append(run)
    pictures: list[Picture] = []
    for same in kinds.values():
        names = ", ".join(run.name for run in same)
        if len(pictures) == MAX_GRIDS:
            notes.append(f"Left out, {MAX_GRIDS} grids are shown: {names}.")
            continue
        try:
            pictures.append(view_picture(same[0], names, folders))
        except (UserError, ValueError, OSError) as error:
            notes.append(f"No views of {names}: {error}.")
    return pictures


def view_picture(run: Run, names: str, folders: Folders) -> Picture:
    """The first images of a run's first batch, each with its two views.

    Raises:
        UserError: when the images are gone or are not those of the run.
        ValueError: for settings of another version.
    """
    config = run.settings()
    images = images_of(run, config, folders)
    keys = next(iter(TrainingOrder(len(images), config.optim.batch_size, 1, config.seed, 0, 0, 1)))[:SHOWN_IMAGES]
    size = config.data.image_size
    batch = TwoViews(images, view_policy(config.data), size, config.seed).__getitems__(keys)
    plain = CentreCrops(images, size, config.seed).__getitems__([index for _, index in keys])
    rows = [sheet_row(views.numpy()) for views in (plain.images, batch.im_q, batch.im_k)]
    with drawn((10, 0.6 + 9.2 * 3 / len(keys))) as figure:
        axes = figure.subplots()
        axes.imshow(np.vstack(rows), interpolation="nearest")
        height = size + GAP
        axes.set_yticks([height * (i + 0.5) for i in range(3)], ["image", "query", "key"], fontsize=15)
        axes.set_xticks([])
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return picture(
            figure,
            f"{len(keys)} training images in three rows: centre crop, query view, key view",
            f"{names}: the first images of epoch 0 (seed {config.seed}, recipe {config.data.recipe}, {size} × {size} "
            "pixels) as a centre crop, as query view and as key view, before normalisation",
            pixels=True,
        )


def images_of(run: Run, config: PretrainConfig, folders: Folders) -> Images:
    """The training images of a run, if they are still what they were."""
    if config.data.train is None:
        raise UserError("the run names no training folder")
    images = folders.open(config.data.train, decoding_of(config.data))
    if images.fingerprint() != run.data["fingerprint"]:
        raise UserError(f"{config.data.train} no longer holds the images the run was trained on")
    return images


def sheet_row(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images [n, H, W, 3] side by side on white."""
    padded = np.pad(images, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    return np.hstack(list(padded))


# embedding


def embedding_pictures(runs: Sequence[Run], folders: Folders, notes: list[str]) -> list[Picture]:
    """Validation features of every finished run in two dimensions; what is missing is told in `notes`."""
    pictures = []
    for run in runs:
        try:
            pictures.append(embedding_picture(run, folders))
        except (UserError, ValueError, OSError) as error:
            notes.append(f"No embedding of {run.name}: {error}.")
    return pictures


def embedding_picture(run: Run, folders: Folders) -> Picture:
    """Features of one run by their first two principal components, coloured by class.

    Raises:
        UserError: when the run has no encoder yet, or its labelled images are gone.
        ValueError: for settings of another version.
    """
    config = run.settings()
    if config.knn.val is None:
        raise UserError("it ran without labelled images (knn.val)")
    if not run.encoder.is_file():
        raise UserError("it has no encoder.pt yet")
    images = folders.open(config.knn.val, decoding_of(config.data))
    labels, names = images.labels()
    features = encoder_features(run.encoder, config, images, labels, choose(labels, len(names)))
    return embedding_figure(run.name, features, names)


def choose(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Indices of the images to show: few enough, of few enough classes, the same ones for every run."""
    classes = subset(num_classes, MAX_CLASSES, 0, "report classes")
    candidates = np.flatnonzero(np.isin(labels, classes))
    return candidates[subset(len(candidates), MAX_POINTS, 0, "report images")]


def encoder_features(
    encoder: Path, config: PretrainConfig, images: Images, labels: NDArray[np.int64], indices: NDArray[np.int64]
) -> Features:
    """Features of a run's own evaluation: its encoder, image size and device."""
    device = config.runtime.device
    where: Literal["cpu", "auto"] = "cpu" if device == "cpu" else "auto"
    with process(RuntimeConfig(device=where, precision="float32", threads=config.runtime.threads)) as runtime:
        backbone, _ = load_backbone(encoder, config.student)
        network = trunk(backbone).to(runtime.device)
        return FeatureExtractor(network, runtime, config.data.image_size)(Labelled(images, labels), indices)


def principal_components(values: NDArray[np.float32]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The first two [n, 2], each with a positive largest weight, and the share of the variance each explains [2]."""
    centred = values - values.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:2]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], 1)
    shares = singular[:2] ** 2 / max(float((singular**2).sum()), 1e-12)
    return centred @ (directions * np.sign(largest)).T, shares


def embedding_figure(name: str, features: Features, class_names: Sequence[str]) -> Picture:
    """The scatter plot."""
    points, shares = principal_components(features.values)
    with drawn((4.9, 5.0)) as figure:
        axes = figure.subplots()
        classes = np.unique(features.labels)
        for i, index in enumerate(classes):
            of_class = points[features.labels == index]
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)]
            axes.scatter(of_class[:, 0], of_class[:, 1], s=13, alpha=0.75, color=colour, marker=marker, linewidths=0,
                         label=label(class_names[index], 18))  # fmt: skip
        axes.set(xlabel=f"first component ({shares[0]:.0%} of variance)", title=label(name, 34))
        axes.set_ylabel(f"second component ({shares[1]:.0%} of variance)")
        axes.grid(False)
        legend(figure, axes, markerscale=1.6)
        left_out = "" if len(class_names) == len(classes) else f" of {len(class_names)}"
        return picture(
            figure,
            "Validation features in two dimensions, coloured by class",
            f"{len(points)} validation images of {len(classes)}{left_out} classes, principal components of the "
            "normalised features of encoder.pt",
        )

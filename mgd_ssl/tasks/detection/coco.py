"""Boxes in COCO's format: an index of arrays, read within little memory, with an account of what was left out.

Format: https://cocodataset.org/#format-data. Of the annotations only boxes, areas and the crowd flag are kept.
"""

import hashlib
import os
from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mgd_ssl.config import Decoding
from mgd_ssl.data.folder import PackedNames
from mgd_ssl.data.images import Images, hash_of_files, read_regular
from mgd_ssl.errors import UserError
from mgd_ssl.printable import shown
from mgd_ssl.tasks.detection.config import DetectionDataConfig
from mgd_ssl.tasks.detection.streamed_json import elements_of

BIGGEST = 1e6  # pixels of an image's edge


class Category(NamedTuple):
    """A class of objects."""

    id: int  # in the file
    name: str


class Boxes(NamedTuple):
    """Objects, those of one image next to each other."""

    corners: np.ndarray  # [m, 4] float64: x1, y1, x2, y2 in pixels of the image
    labels: np.ndarray  # [m] int64 index of the category
    crowd: np.ndarray  # [m] bool
    areas: np.ndarray  # [m] float64, of the segmentation where there is one

    def of(self, part: slice | np.ndarray) -> "Boxes":
        """Some of them."""
        return Boxes(*(values[part] for values in self))


class CocoImages(Images):
    """The images a JSON file of COCO's format names, in the order of their ids."""

    def __init__(self, root: Path, names: list[str], decoding: Decoding) -> None:
        self.root, self.ignored, self.decoding = root, [], decoding
        self.names = PackedNames.of([os.fsencode(name) for name in names])

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Path relative to the root."""
        return self.names[index]

    def read(self, index: int) -> bytes:
        """The encoded image."""
        return read_regular(self.root / self.name(index), self.decoding.max_bytes)

    def labels(self) -> tuple[np.ndarray, list[str]]:
        """Raises UserError: an image has boxes, not a class."""
        raise UserError(f"{self.root} has boxes and no class an image: pass a folder with one folder a class")

    def fingerprint(self) -> str:
        """Hash of the names and their order."""
        return hashlib.sha256(self.names.packed.tobytes() + self.names.ends.tobytes()).hexdigest()

    def state(self) -> str:
        """Hash of the place, and of the names, sizes and times of all files."""
        return hash_of_files(self, self.names)


@dataclass
class Annotated:
    """Images and their boxes."""

    path: Path  # of the JSON file
    images: CocoImages
    ids: np.ndarray  # [n] int64 of the images, ascending
    sizes: np.ndarray  # [n, 2] int64: height, width as the file says
    categories: list[Category]  # by id
    boxes: Boxes
    starts: np.ndarray  # [n + 1] where the boxes of every image begin
    left_out: Counter[str] = field(default_factory=Counter)  # why -> boxes
    missing: int = 0  # images that are not in their folder

    def boxes_of(self, index: int) -> Boxes:
        """The boxes of one image."""
        return self.boxes.of(slice(self.starts[index], self.starts[index + 1]))

    @cached_property
    def trainable(self) -> np.ndarray:
        """Indices of the images that have a box which is no crowd's."""
        plain = np.concatenate([[0], np.cumsum(~self.boxes.crowd)])
        return np.flatnonzero(plain[self.starts[1:]] > plain[self.starts[:-1]])

    def fingerprint(self) -> str:
        """Hash of the names, boxes and categories."""
        digest = hashlib.sha256(self.images.fingerprint().encode())
        for values in (self.ids, self.starts, *self.boxes):
            digest.update(values.tobytes())
        digest.update(repr(self.categories).encode())
        return digest.hexdigest()

    def told(self) -> str:
        """`118287 images, 860001 boxes of 80 classes`, and what was left out."""
        line = (
            f"{len(self.ids)} images, {len(self.boxes.labels)} boxes of {len(self.categories)} classes in {self.path}"
        )
        reasons = ", ".join(f"{count} {why}" for why, count in self.left_out.most_common())
        gone = f"; {self.missing} images are missing, others take their place" if self.missing else ""
        return line + gone + (f"; left out: {reasons}" if reasons else "")


class _Raw:
    """What a file says, as it comes."""

    def __init__(self) -> None:
        self.images: dict[int, tuple[str, int, int]] = {}  # id -> name, height, width
        self.categories: dict[int, str] = {}
        self.of = {name: array("q") for name in ("image", "category", "crowd")}  # of every box
        self.numbers = array("d")  # x, y, w, h, area of every box
        self.seen: Counter[str] = Counter()

    def add(self, key: str, element: Any) -> None:
        """Take an element of the list `key`."""
        self.seen[key] += 1
        if key == "images":
            name, edges = element["file_name"], (element["height"], element["width"])
            if not isinstance(name, str) or not all(0 < edge < BIGGEST for edge in edges):
                raise ValueError("file_name, height or width are not those of an image")
            self.images[int(element["id"])] = (name, int(edges[0]), int(edges[1]))
        elif key == "categories":
            self.categories[int(element["id"])] = str(element["name"])
        elif key == "annotations":
            x, y, w, h = (float(value) for value in element["bbox"])
            image, category, crowd = element["image_id"], element["category_id"], element.get("iscrowd", 0)
            for name, value in zip(self.of, (image, category, crowd), strict=True):
                self.of[name].append(int(value))
            self.numbers.extend((x, y, w, h, float(element.get("area", w * h))))


def read_coco(folder: Path, path: Path, decoding: Decoding) -> Annotated:
    """Index a JSON file of COCO's format.

    Args:
        folder: of its images.
        path: the file.
        decoding: of the images.

    Raises:
        UserError: when it cannot be read, is none, or holds no images, categories or boxes.
    """
    raw, key = _Raw(), "start"
    try:
        for key, element in elements_of(path):
            raw.add(key, element)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): pass a JSON file of COCO's format") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        where = f"{key}, entry {raw.seen[key]}" if raw.seen[key] else "at its beginning"
        why = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise UserError(f"{path} is no JSON file of COCO's format ({where}: {shown(why)}): mend it") from error
    for needed, found in (("images", raw.images), ("categories", raw.categories), ("annotations", raw.numbers)):
        if not found:
            raise UserError(f"{path} holds no {needed}: pass a file like COCO's instances_train2017.json")
    return _indexed(raw, folder, path, decoding)


def _indexed(raw: _Raw, folder: Path, path: Path, decoding: Decoding) -> Annotated:
    ids = np.array(sorted(raw.images), dtype=np.int64)
    categories = [Category(number, raw.categories[number]) for number in sorted(raw.categories)]
    known = np.array([category.id for category in categories])
    sizes = np.array([raw.images[number][1:] for number in ids.tolist()])
    of_image, of_category = (np.frombuffer(raw.of[name], dtype=np.int64) for name in ("image", "category"))
    numbers = np.frombuffer(raw.numbers, dtype=np.float64).reshape(-1, 5)
    where, label = np.searchsorted(ids, of_image), np.searchsorted(known, of_category)
    for wanted, found, place, what in ((of_image, ids, where, "image_id"), (of_category, known, label, "category_id")):
        wrong = found[np.minimum(place, len(found) - 1)] != wanted
        if wrong.any():
            raise UserError(
                f"{path}: {wrong.sum()} annotations have a {what} that is not listed (first: "
                f"{wanted[wrong][0]}): add it to the file, or take them out"
            )
    left_out: Counter[str] = Counter()
    corners = np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:4]], axis=1)
    with np.errstate(invalid="ignore"):
        edges = sizes[where][:, [1, 0]]  # width, height
        reasons = {
            "boxes with numbers that are not finite": ~np.isfinite(numbers).all(axis=1),
            "boxes of no area": (numbers[:, 2:4] <= 0).any(axis=1),
            "boxes outside their image": (corners[:, :2] >= edges).any(axis=1) | (corners[:, 2:] <= 0).any(axis=1),
        }
    keep = np.ones(len(numbers), dtype=bool)
    for why, bad in reasons.items():
        if count := int((bad & keep).sum()):
            left_out[why] = count
        keep &= ~bad
    kept = np.flatnonzero(keep)
    kept = kept[np.argsort(where[kept], kind="stable")]
    boxes = Boxes(corners, label, np.frombuffer(raw.of["crowd"], dtype=np.int64) != 0, numbers[:, 4]).of(kept)
    starts = np.searchsorted(where[kept], np.arange(len(ids) + 1))
    names = [raw.images[number][0] for number in ids.tolist()]
    return Annotated(path, CocoImages(folder, names, decoding), ids, sizes, categories, boxes, starts, left_out)


def check_files(annotated: Annotated, max_missing: float) -> int:
    """How many of the images are missing in their folder.

    Raises:
        UserError: when the folder is missing, or more than this share of the images.
    """
    images = annotated.images
    if not images.root.is_dir():
        raise UserError(f"{images.root} is not a folder: pass the folder of the images {annotated.path} names")
    folders = {os.path.dirname(name) for name in images.names}
    there = {
        os.path.join(folder, entry)
        for folder in folders
        if os.path.isdir(images.root / folder)
        for entry in os.listdir(images.root / folder)
    }
    missing = [name for name in images.names if os.path.normpath(name) not in there and name not in there]
    if len(missing) > max_missing * len(images):
        raise UserError(
            f"{len(missing)} of the {len(images)} images that {annotated.path} names are not in {images.root} (first: "
            f"{shown(missing[0])}): pass their folder, or bring them back"
        )
    return len(missing)


def check_same_categories(train: Annotated, val: Annotated) -> None:
    """Raise UserError unless both files have the same categories, naming the first that differs."""
    if train.categories == val.categories:
        return
    one, other = ({category.id: category.name for category in each.categories} for each in (train, val))
    first = min(number for number in one.keys() | other.keys() if one.get(number) != other.get(number))
    told = [f"{shown(names[first])!r}" if first in names else "missing" for names in (one, other)]
    raise UserError(
        f"category {first} is {told[0]} in {train.path} and {told[1]} in {val.path}: give both the same categories"
    )


class Split(NamedTuple):
    """Where images and boxes lie."""

    images: Path
    annotations: Path


def split_of(data: DetectionDataConfig, name: str) -> Split:
    """The folder and the file of `train` or `val`.

    Raises:
        UserError: when a setting is missing.
    """
    images, annotations = getattr(data, f"{name}_images"), getattr(data, f"{name}_annotations")
    if data.root is not None:
        images = images or data.root / f"{name}2017"
        annotations = annotations or data.root / "annotations" / f"instances_{name}2017.json"
    for setting, value in ((f"{name}_images", images), (f"{name}_annotations", annotations)):
        if value is None:
            raise UserError(f"data.{setting} is not set: pass --data.root, COCO as it unpacks, or data.{setting}")
    return Split(images, annotations)


def open_split(data: DetectionDataConfig, name: str, max_missing: float) -> Annotated:
    """The images and boxes of `train` or `val`, their files there.

    Raises:
        UserError: when anything is wrong with them.
    """
    folder, path = split_of(data, name)
    annotated = read_coco(folder, path, Decoding(data.background, data.max_pixels))
    annotated.missing = check_files(annotated, max_missing)
    return annotated

"""Images and boxes as a detector sees them: resized by the short side, perhaps mirrored, padded to one size.

The resizing is detectron2's ResizeShortestEdge (https://github.com/facebookresearch/detectron2, transforms), through
Pillow as there. What is drawn is a function of (seed, epoch, index).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mgd_ssl.data.decode import decode_pixels_told
from mgd_ssl.data.images import Noted, Unreadable
from mgd_ssl.data.samples import Samples
from mgd_ssl.data.views_cpu import Pixels
from mgd_ssl.errors import UserError, out_of_files
from mgd_ssl.tasks.detection.coco import Annotated
from moco.keyed import keyed_generator

DIVISOR = 32  # of a padded batch's edges: the stride of the last stage


class DetectionBatch(NamedTuple):
    """Images of one size, and the boxes of all of them one after the other."""

    images: Tensor  # [N, H, W, 3] uint8, zeros to the right of and below each image
    sizes: Tensor  # [N, 2] int64 height and width of each without its padding
    boxes: Tensor  # [M, 4] float32: x1, y1, x2, y2 in pixels of the resized images
    labels: Tensor  # [M] int64 index of the category
    counts: list[int]  # boxes of each image
    indices: Tensor  # [N] where they come from; of the replacement where an image was unreadable
    scales: Tensor  # [N, 2] float64 of width and height, against the file
    unreadable: list[Unreadable]

    def targets(self, device: torch.device) -> list[dict[str, Tensor]]:
        """`boxes` and `labels` of each image, as torchvision's detectors take them."""
        boxes, labels = (values.to(device, non_blocking=True) for values in (self.boxes, self.labels))
        pairs = zip(boxes.split(self.counts), labels.split(self.counts), strict=True)
        return [{"boxes": one, "labels": other} for one, other in pairs]


class Prepared(NamedTuple):
    """One image before it is padded."""

    pixels: Pixels  # [h, w, 3]
    boxes: np.ndarray  # [m, 4] float32
    labels: np.ndarray  # [m] int64
    source: int  # index of the image
    scales: tuple[float, float]  # of width and height


def resized_size(height: int, width: int, side: int, longest: int) -> tuple[int, int]:
    """Height and width with this short side, or a shorter one where the long side would be too long."""
    scale = min(side / min(height, width), longest / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


class _Resized(Samples, Dataset[DetectionBatch]):
    def __init__(self, annotated: Annotated, longest: int, seed: int) -> None:
        super().__init__(annotated.images, seed)
        self.annotated, self.longest = annotated, longest

    def prepared(self, pixels: Pixels, index: int, side: int, mirrored: bool) -> Prepared:
        """An image and its boxes, crowds left out."""
        height, width = pixels.shape[:2]
        h, w = resized_size(height, width, side, self.longest)
        if (h, w) != (height, width):
            pixels = np.asarray(Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR))
        found = self.annotated.boxes_of(index)
        found = found.of(~found.crowd)
        edges = np.array([width, height, width, height])
        corners = np.clip(found.corners, 0, edges)
        keep = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        corners = corners[keep] * (np.array([w, h, w, h]) / edges)
        if mirrored:
            pixels = pixels[:, ::-1]
            corners = np.stack([w - corners[:, 2], corners[:, 1], w - corners[:, 0], corners[:, 3]], axis=1)
        return Prepared(pixels, corners.astype(np.float32), found.labels[keep], index, (w / width, h / height))


class TrainingImages(_Resized):
    """Images to learn from, addressed by (epoch, index): one of several short sides, mirrored half of the time.

    Args:
        annotated: images and boxes.
        sides: short sides in pixels.
        longest: that the other side may have.
        seed: of the run.
    """

    def __init__(self, annotated: Annotated, sides: Sequence[int], longest: int, seed: int) -> None:
        super().__init__(annotated, longest, seed)
        self.sides = list(sides)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> DetectionBatch:
        """A batch; the loader calls this once with all keys of the batch."""
        prepared, noted = [], Noted()
        for epoch, index in keys:
            side, mirrored = self.drawn(epoch, index)
            pixels, used = self.load(index, noted, decode_pixels_told)
            prepared.append(self.prepared(pixels, used, side, mirrored))
        return padded(prepared, noted)

    def drawn(self, epoch: int, index: int) -> tuple[int, bool]:
        """The short side of an image in an epoch, and whether it is mirrored."""
        side, mirrored = keyed_generator(self.seed, "detection", epoch, index).random(2).tolist()
        return self.sides[int(side * len(self.sides))], mirrored < 0.5


class WholeImages(_Resized):
    """Images as they are validated: one short side.

    Args:
        annotated: images and boxes.
        side: in pixels.
        longest: that the other side may have.
    """

    def __init__(self, annotated: Annotated, side: int, longest: int) -> None:
        super().__init__(annotated, longest, seed=0)
        self.side = side

    def __getitems__(self, indices: Sequence[int]) -> DetectionBatch:
        """A batch; the loader calls this once with all indices of the batch.

        Raises:
            UserError: for an image that cannot be decoded, as average precision without it is another number.
        """
        prepared, noted = [], Noted()
        for index in indices:
            try:
                pixels, composited = decode_pixels_told(self.images.read(index), self.images.decoding)
            except Exception as error:  # decoders raise anything
                if (told := out_of_files(error)) is not None:
                    raise UserError(str(told)) from error
                name = self.images.root / self.images.name(index)
                raise UserError(f"{name} cannot be decoded ({type(error).__name__}: {error}): mend it") from error
            noted.decoded += 1
            noted.composited += composited
            prepared.append(self.prepared(pixels, index, self.side, mirrored=False))
        return padded(prepared, noted)


def padded(prepared: Sequence[Prepared], noted: list[Unreadable]) -> DetectionBatch:
    """Images as one batch, padded to a multiple of `DIVISOR`."""
    sizes = np.array([each.pixels.shape[:2] for each in prepared], dtype=np.int64)
    height, width = (-(-int(edge) // DIVISOR) * DIVISOR for edge in sizes.max(axis=0))
    images = np.zeros((len(prepared), height, width, 3), dtype=np.uint8)
    for image, each, (h, w) in zip(images, prepared, sizes, strict=True):
        image[:h, :w] = each.pixels
    return DetectionBatch(
        torch.from_numpy(images),
        torch.from_numpy(sizes),
        torch.from_numpy(np.concatenate([each.boxes for each in prepared])),
        torch.from_numpy(np.concatenate([each.labels for each in prepared])),
        [len(each.labels) for each in prepared],
        torch.tensor([each.source for each in prepared]),
        torch.tensor([each.scales for each in prepared], dtype=torch.float64),
        noted,
    )

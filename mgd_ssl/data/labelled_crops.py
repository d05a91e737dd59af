"""Random crops of labelled images, as supervised training sees them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mgd_ssl.data.decode import decode_pixels_told
from mgd_ssl.data.images import Images, Noted, Unreadable
from mgd_ssl.data.order import TrainingOrder
from mgd_ssl.data.samples import Samples
from mgd_ssl.data.space import Space
from mgd_ssl.data.views_cpu import cut_view
from moco import ViewKey, ViewPolicy, draw_unplaced, place_view


class LabelledBatch(NamedTuple):
    """A crop of every image, and its label."""

    images: Tensor  # [N, H, W, 3] uint8
    labels: Tensor  # [N] int64; of the replacement where an image was unreadable
    unreadable: list[Unreadable]


class RandomCrops(Samples, Dataset[LabelledBatch]):
    """One random crop of each image, perhaps mirrored, addressed by (epoch, index).

    Args:
        images: what to look at.
        labels: [len(images)] class indexes.
        scale: range of a crop's share of the image's area.
        size: edge of a crop in pixels.
        seed: of the run.
    """

    def __init__(self, images: Images, labels: np.ndarray, scale: tuple[float, float], size: int, seed: int) -> None:
        super().__init__(images, seed)
        self.labels, self.size = labels, size
        self.policy = ViewPolicy(scale=scale, jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> LabelledBatch:
        """A batch; the loader calls this once with all keys of the batch."""
        space = self.space(len(keys))
        return self.batch(space, self.fill(keys, space))

    def space(self, num_images: int) -> Space:
        """Memory for a batch."""
        views = torch.empty((1, num_images, self.size, self.size, 3), dtype=torch.uint8)
        return Space(views, torch.empty((1, num_images), dtype=torch.int64))

    def fill(self, keys: Sequence[tuple[int, int]], space: Space) -> list[Unreadable]:
        """Write the crops and labels of a batch; what there is to tell of its files is returned."""
        crops, noted = space.views[0].numpy(), Noted()
        for i, key in enumerate(keys):
            image, used = self.load(key[1], noted, decode_pixels_told)
            height, width = image.shape[:2]
            view = place_view(draw_unplaced(self.policy, ViewKey(self.seed, *key, 0)), self.policy, width, height)
            cut_view(image, view, crops[i])
            space.rows[0, i] = int(self.labels[used])
        return noted

    def batch(self, space: Space, unreadable: list[Unreadable]) -> LabelledBatch:
        """What `fill` has written, in place."""
        return LabelledBatch(space.views[0], space.rows[0], unreadable)


class SomeOf:
    """The keys of an order over some of the images.

    Args:
        order: over as many images as there are in `indices`.
        indices: [n] of images.
    """

    def __init__(self, order: TrainingOrder, indices: np.ndarray) -> None:
        self.order, self.indices = order, indices

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch, part in self.order.parts():
            yield [(epoch, int(index)) for index in self.indices[part]]

    def __len__(self) -> int:
        return len(self.order)

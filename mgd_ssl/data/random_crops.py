"""One random crop of every image, as linear classifiers are trained on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from mgd_ssl.data.images import Images, Noted
from mgd_ssl.data.samples import EvalBatch, Samples
from moco import ViewKey, ViewPolicy, draw_view, render_view

# torchvision's RandomResizedCrop and RandomHorizontalFlip with their defaults, as in main_lincls.py of MoCo
CROP_AND_FLIP = ViewPolicy(scale=(0.08, 1.0), jitter_probability=0, grey_probability=0, blur_probability=0)


class RandomCrops(Samples, Dataset[EvalBatch]):
    """A random crop, perhaps mirrored, of each image, addressed by (epoch, index)."""

    def __init__(self, images: Images, size: int, seed: int) -> None:
        super().__init__(images, seed)
        self.size = size

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> EvalBatch:
        """A batch; the loader calls this once with all keys of the batch."""
        crops = np.empty((len(keys), self.size, self.size, 3), dtype=np.uint8)
        used, noted = [], Noted()
        for row, (epoch, index) in enumerate(keys):
            image, where = self.decode(index, noted)
            view = draw_view(CROP_AND_FLIP, *image.size, ViewKey(seed=self.seed, epoch=epoch, image=index, view=0))
            crops[row] = np.asarray(render_view(image, view, self.size))
            used.append(where)
        return EvalBatch(torch.from_numpy(crops), torch.tensor(used), noted)

"""Frozen features of labelled images, shared by every evaluation."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.data.images import Images
from mgd_ssl.data.loader import ONCE, Reading, one_pass
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.data.sources import Labelled
from mgd_ssl.data.upload import Upload
from mgd_ssl.errors import UserError
from mgd_ssl.run.runtime import Runtime
from moco.dist import broadcast, gather_batch, rank, world_size

GATHERED_ROWS = 4096  # of each rank at a time


@dataclass(frozen=True)
class Features:
    """Features, L2-normalised unless said otherwise, and their labels."""

    values: np.ndarray  # [n, d] float32
    labels: np.ndarray  # [n] int64


class FeatureExtractor:
    """Features of centre crops, each process taking its part; complete on every rank.

    Args:
        trunk: [N, 3, H, W] -> [N, d]; put into eval mode for the time being.
        runtime: device and precision.
        image_size: edge of the crop in pixels.
        normalise: divide every feature vector by its norm.
    """

    def __init__(self, trunk: nn.Module, runtime: Runtime, image_size: int, normalise: bool = True) -> None:
        self.trunk, self.runtime, self.image_size, self.normalise = trunk, runtime, image_size, normalise

    @torch.inference_mode()
    def __call__(self, labelled: Labelled, indices: np.ndarray, reading: Reading = ONCE) -> Features:
        """Features of some images.

        Args:
            labelled: images, and the class index of every one.
            indices: which of them.
            reading: in which batches, and told to whom; replacements of unreadable images bring their own labels.

        Raises:
            UserError: on all ranks, naming the first image whose features are not finite.
        """
        images, labels = labelled
        size = len(range(rank(), len(indices), world_size()))  # of this rank's part
        upload = Upload(self.runtime)
        at_once = 1 if self.runtime.device.type == "cpu" else GATHERED_ROWS
        values, used = Rows(size, at_once), torch.empty(size, dtype=torch.int64)
        modes = {module: module.training for module in self.trunk.modules()}
        self.trunk.eval()
        with one_pass(CentreCrops(images, self.image_size, seed=0), indices, reading) as batches:
            for batch in batches:
                with self.runtime.autocast():
                    features = self.trunk(upload.images(batch.images))  # [N, d]
                features = features.float()
                used[values.count : values.count + len(features)] = batch.indices
                values.add(F.normalize(features, dim=1) if self.normalise else features)
        for module, mode in modes.items():
            module.training = mode
        _check_finite(values.all(), used, images)
        used = gathered(used[:, None], len(indices))[:, 0]
        return Features(gathered(values.all(), len(indices)).numpy(), labels[used.numpy()])


class Rows:
    """Rows [n, d] in main memory that come batch by batch from the device.

    They are copied many batches at a time, since each copy waits for all that the device has been given to do.

    Args:
        size: n.
        at_once: rows that are waited for together.
    """

    def __init__(self, size: int, at_once: int) -> None:
        self.size, self.at_once, self.count, self._copied = size, at_once, 0, 0
        self._values = torch.empty(0, 0)
        self._waiting: list[Tensor] = []  # on the device

    def add(self, rows: Tensor) -> None:
        """The next ones, [m, d]."""
        self._waiting.append(rows)
        self.count += len(rows)
        if self.count - self._copied >= self.at_once:
            self._copy()

    def all(self) -> Tensor:
        """[n, d]; without a column when none was added."""
        if self._waiting:
            self._copy()
        return self._values

    def _copy(self) -> None:
        rows = torch.cat(self._waiting)
        if self._copied == 0:  # the one copy of this process's part
            self._values = torch.empty(self.size, rows.shape[1])
        self._values[self._copied : self.count] = rows
        self._copied, self._waiting = self.count, []


def _check_finite(values: Tensor, used: Tensor, images: Images) -> None:
    """Raise UserError on all ranks when a row of one of them is not finite; values [n, d] of images [n]."""
    finite = torch.cat([part.isfinite().all(dim=1) for part in values.split(GATHERED_ROWS)])
    broken = used[~finite][:1] if len(used) else used
    first = torch.full((1,), len(images)) if len(broken) == 0 else broken
    index = int(gather_batch(first).min())
    if index < len(images):
        raise UserError(
            f"{images.root / images.name(index)} has features that are not finite: "
            "use an earlier checkpoint, or float32 where the precision was lower"
        )


def gathered(part: Tensor, total: int) -> Tensor:
    """Rows [m, d] of all ranks, interleaved back into the order of the indices: [total, d].

    Part by part, so that beside the result little more than this rank's own rows are held.
    """
    if world_size() == 1:
        return part
    width = int(broadcast(torch.tensor(part.shape[1])))  # unknown to a rank without an image; rank 0 has one
    most = -(-total // world_size())
    everything = part.new_empty((most, world_size(), width))
    for start in range(0, most, GATHERED_ROWS):
        rows = part.new_zeros((min(GATHERED_ROWS, most - start), width))
        mine = part[start : start + len(rows)]
        if len(mine):
            rows[: len(mine)] = mine
        by_rank = gather_batch(rows).view(world_size(), len(rows), width)
        everything[start : start + len(rows)] = by_rank.transpose(0, 1)
    return everything.view(-1, width)[:total]

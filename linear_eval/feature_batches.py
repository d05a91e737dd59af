"""Where the features of a training step come from: the cache, or the backbone itself on random crops."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from linear_eval.feature_cache import check_finite
from mgd_ssl.data.images import Images
from mgd_ssl.data.loader import Account, batches
from mgd_ssl.data.order import TrainingOrder
from mgd_ssl.data.random_crops import RandomCrops
from mgd_ssl.data.samples import EvalBatch
from mgd_ssl.data.upload import Upload
from mgd_ssl.evaluation.features import Features
from mgd_ssl.networks.frozen import FrozenBackbone
from mgd_ssl.run.runtime import Runtime
from moco.device import uploaded
from moco.dist import rank, world_size

CHUNK = 8192  # rows read at a time outside training
CHECKED_AT_ONCE = 16  # batches on a GPU: whether features are finite is not asked, and waited for, at every step
TURNED_AT_ONCE = 2**30  # bytes of a table of which a rotated copy is held
Batches = Iterator[tuple[Tensor, Tensor]]  # features [N, d] and classes [N], on the device


class Transform(NamedTuple):
    """What is done to features before a head sees them, in this order."""

    normalise: bool = False
    mean: Tensor | None = None  # [d]
    inverse_deviation: Tensor | None = None  # [d]
    rotation: Tensor | None = None  # [d, d]

    def __call__(self, x: Tensor) -> Tensor:
        """[N, d] -> [N, d]."""
        if self.normalise:
            x = x / x.norm(dim=1, keepdim=True)
        if self.mean is not None and self.inverse_deviation is not None:
            x = (x - self.mean).mul_(self.inverse_deviation)
        return x if self.rotation is None else x @ self.rotation


def standardising(values: np.ndarray, normalise: bool, device: torch.device) -> Transform:
    """Transform to zero mean and unit variance over the rows [n, d], as FullBatchNorm in SimReg's eval_linear.py."""
    plain, dim = Transform(normalise), values.shape[1]

    def moments(centre: Tensor) -> tuple[Tensor, Tensor]:
        first, second = torch.zeros(2, dim, dtype=torch.float64)
        for start in range(0, len(values), CHUNK):
            x = plain(torch.from_numpy(values[start : start + CHUNK])).double() - centre
            first += x.sum(0)
            second += x.square().sum(0)
        return first, second

    mean = moments(torch.zeros(dim, dtype=torch.float64))[0] / len(values)
    variance = moments(mean)[1] / max(1, len(values) - 1)
    inverse = (variance + 1e-5).rsqrt()
    return Transform(normalise, mean.float().to(device), inverse.float().to(device))


class Source(Protocol):
    """Training features."""

    def batches(self, rows: np.ndarray, order: TrainingOrder) -> AbstractContextManager[Batches]:
        """This rank's part of every batch of an order over the images `rows`."""
        ...


class CachedSource:
    """Features from a table.

    Args:
        table: raw features and their labels.
        transform: of the features.
        device: where they are used; the table is moved there as a whole if it takes up at most half of the memory.
    """

    def __init__(self, table: Features, transform: Transform, device: torch.device) -> None:
        self.transform, self.device = transform, device
        self.values, self.labels = torch.from_numpy(table.values), torch.from_numpy(table.labels)
        fits = device.type != "cuda" or self.values.nbytes < torch.cuda.mem_get_info(device)[0] // 2
        if fits:
            self.values, self.labels = self.values.to(device), self.labels.to(device)

    def rotated(self, rotation: Tensor) -> "CachedSource":
        """The same features in another basis [d, d]; a small table is turned at once, not again in every epoch."""
        source = copy(self)
        source.transform = self.transform._replace(rotation=rotation)
        if self.values.nbytes <= TURNED_AT_ONCE:
            parts = [source.transform(part.to(self.device)).to(part.device) for part in self.values.split(CHUNK)]
            source.values = torch.cat(parts)
            source.transform = Transform()
        return source

    def batches(self, rows: np.ndarray, order: TrainingOrder) -> AbstractContextManager[Batches]:
        """This rank's part of every batch of an order over the images `rows`."""
        return nullcontext(self.take(rows[part]) for _, part in order.parts())

    def all(self, rows: np.ndarray) -> Batches:
        """This rank's part of the given rows, once."""
        mine = rows[rank() :: world_size()]
        return (self.take(mine[start : start + CHUNK]) for start in range(0, len(mine), CHUNK))

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Transformed features and classes of the given rows, on the device."""
        chosen = uploaded(torch.from_numpy(rows), self.values.device)
        x, y = (uploaded(table[chosen], self.device) for table in (self.values, self.labels))
        return self.transform(x), y


class LiveSource:
    """Features of random crops, through the backbone at every step.

    Args:
        backbone: on the device.
        images: training images.
        labels: [n] their classes.
        transform: of the features.
        size: edge of a crop in pixels.
        seed: of the run.
        runtime: device and precision.
        workers: data processes.
        account: told of unreadable images.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        images: Images,
        labels: np.ndarray,
        transform: Transform,
        size: int,
        seed: int,
        runtime: Runtime,
        workers: int,
        account: Account,
    ) -> None:
        self.backbone, self.images, self.transform, self.runtime = backbone, images, transform, runtime
        self.labels = torch.from_numpy(labels)
        self.crops = RandomCrops(images, size, seed)
        self.workers, self.account, self.upload = workers, account, Upload(runtime)
        self.checked_at_once = 1 if runtime.device.type == "cpu" else CHECKED_AT_ONCE
        self._unchecked: list[tuple[Tensor, Tensor]] = []  # features and images of the last batches

    @contextmanager
    def batches(self, rows: np.ndarray, order: TrainingOrder) -> Iterator[Batches]:
        """This rank's part of every batch of an order over all images."""
        assert len(rows) == len(self.images)
        with batches(self.crops, order, self.workers, pin=self.runtime.device.type == "cuda") as loader:
            yield (self._features(batch) for batch in loader)

    def _features(self, batch: EvalBatch) -> tuple[Tensor, Tensor]:
        self.account.note(batch.unreadable)
        with torch.no_grad(), self.runtime.autocast():
            x = self.backbone(self.upload.images(batch.images)).float()
        self._unchecked.append((x, batch.indices))
        if len(self._unchecked) == self.checked_at_once:
            self._check()
        y = uploaded(self.labels[batch.indices], self.runtime.device)
        return self.transform(x), y

    def _check(self) -> None:
        """Raise UserError unless the features of the last batches are finite; on a GPU this waits for them."""
        x, indices = (torch.cat(parts) for parts in zip(*self._unchecked, strict=True))
        self._unchecked.clear()
        if not torch.isfinite(x).all():
            check_finite(x.cpu().numpy(), indices.numpy(), self.images, self.backbone)

"""Views and crops of images, the order they are seen in, and the batches made of them.

Whatever is random is a function of (seed, epoch, index, view), so batches depend neither on the number of data
workers nor on where a run was resumed.
"""

import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from mgd_ssl.config import DataConfig
from mgd_ssl.errors import UserError
from mgd_ssl.images import Images, Unreadable
from moco import ViewPolicy, draw_view, render_view
from moco.keyed import keyed_generator

STRIP = 4  # sides of an image differ by this factor at most when it is resized for a centre crop
REPLACEMENTS = 50  # other images tried in place of an unreadable one before giving up


class PretrainBatch(NamedTuple):
    """Two views of every image."""

    im_q: Tensor  # [N, H, W, 3] uint8
    im_k: Tensor  # [N, H, W, 3] uint8
    unreadable: list[Unreadable]


class EvalBatch(NamedTuple):
    """Centre crops."""

    images: Tensor  # [N, H, W, 3] uint8
    indices: Tensor  # [N] where they come from; of the replacement where an image was unreadable
    unreadable: list[Unreadable]


class Samples:
    """Decoding with replacement: an unreadable image gives way to another one, the same one every time."""

    def __init__(self, images: Images, seed: int) -> None:
        self.images, self.seed = images, seed

    def decode(self, index: int, unreadable: list[Unreadable]) -> tuple[Image.Image, int]:
        """The image at `index` or its replacement, and where that one is; failures are added to the list.

        Raises:
            UserError: when nothing can be decoded in many tries.
        """
        candidate = index
        for attempt in range(REPLACEMENTS):
            try:
                return self.images.open(candidate), candidate
            except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
                unreadable.append(Unreadable(self.images.name(candidate), f"{type(error).__name__}: {error}"))
            generator = keyed_generator(self.seed, "replacement", index, attempt)
            candidate = int(generator.integers(len(self.images)))
        failure = unreadable[-1]
        raise UserError(
            f"{REPLACEMENTS} images tried in a row are unreadable, last {self.images.root / failure.name} "
            f"({failure.why}): check that the folder holds whole images"
        )


class TwoViews(Samples, Dataset[PretrainBatch]):
    """Query and key view of each image, addressed by (epoch, index).

    Args:
        images: what to look at.
        policy: distribution of the views.
        size: edge of a view in pixels.
        seed: of the run.
    """

    def __init__(self, images: Images, policy: ViewPolicy, size: int, seed: int) -> None:
        super().__init__(images, seed)
        self.policy, self.size = policy, size

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> PretrainBatch:
        """A batch; the loader calls this once with all keys of the batch."""
        views = np.empty((2, len(keys), self.size, self.size, 3), dtype=np.uint8)
        unreadable: list[Unreadable] = []
        for row, (epoch, index) in enumerate(keys):
            image, _ = self.decode(index, unreadable)  # once for both views
            for v in range(2):
                view = draw_view(self.policy, *image.size, seed=self.seed, epoch=epoch, index=index, view=v)
                views[v, row] = np.asarray(render_view(image, view, self.size))
        im_q, im_k = torch.from_numpy(views)
        return PretrainBatch(im_q, im_k, unreadable)


class CentreCrops(Samples, Dataset[EvalBatch]):
    """The image as it is evaluated: short side to 256/224 of the size, centre crop (as published)."""

    def __init__(self, images: Images, size: int, seed: int) -> None:
        super().__init__(images, seed)
        self.size = size

    def __getitems__(self, indices: Sequence[int]) -> EvalBatch:
        """A batch; the loader calls this once with all indices of the batch."""
        crops = np.empty((len(indices), self.size, self.size, 3), dtype=np.uint8)
        used, unreadable = [], list[Unreadable]()
        for row, index in enumerate(indices):
            image, where = self.decode(index, unreadable)
            reach = STRIP * min(image.size)  # the ends of a long strip are out of the crop, but would be enlarged first
            image = TF.center_crop(image, [min(image.height, reach), min(image.width, reach)])
            image = TF.resize(image, [round(self.size * 256 / 224)], InterpolationMode.BILINEAR)
            crops[row] = np.asarray(TF.center_crop(image, [self.size, self.size]))
            used.append(where)
        return EvalBatch(torch.from_numpy(crops), torch.tensor(used), unreadable)


class TrainingOrder:
    """Keys (epoch, index) of this rank's part of every global batch, from a step on to the end of the run.

    The order of an epoch is a function of (seed, epoch); what is left over at its end is dropped. The global batch
    of a step does not depend on the number of processes.
    """

    def __init__(
        self, num_images: int, batch_size: int, epochs: int, seed: int, first_step: int, rank: int, world_size: int
    ) -> None:
        self.num_images, self.batch_size, self.epochs, self.seed = num_images, batch_size, epochs, seed
        self.first_step, self.rank, self.world_size = first_step, rank, world_size
        self.steps_per_epoch = num_images // batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch, part in self.parts():
            yield [(epoch, int(index)) for index in part]

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """The epoch and the indices of every part."""
        local = self.batch_size // self.world_size
        first_epoch, first = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            order = keyed_generator(self.seed, "order", epoch).permutation(self.num_images)
            for step in range(first, self.steps_per_epoch):
                start = step * self.batch_size + self.rank * local
                yield epoch, order[start : start + local]
            first = 0

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step


def view_policy(config: DataConfig) -> ViewPolicy:
    """Distribution of the views a configuration asks for."""
    recipe = ViewPolicy.v1() if config.recipe == "v1" else ViewPolicy()
    return replace(recipe, scale=config.crop_scale, blur_sigma=config.blur_sigma)


def chunks(indices: np.ndarray, size: int) -> list[list[int]]:
    """Consecutive lists of at most `size` indices."""
    return [indices[start : start + size].tolist() for start in range(0, len(indices), size)]


def subset(num_images: int, count: int, seed: int, purpose: str) -> np.ndarray:
    """Sorted indices of at most `count` images, a function of (seed, purpose)."""
    if count >= num_images:
        return np.arange(num_images)
    return np.sort(keyed_generator(seed, purpose).choice(num_images, size=count, replace=False, shuffle=False))


@contextmanager
def batches(dataset: Dataset[Any], keys: Iterable[Any], workers: int, pin: bool) -> Iterator[Iterator[Any]]:
    """Iterator over the batches of `dataset.__getitems__(key list)`; its workers end with the block.

    Args:
        dataset: with `__getitems__`.
        keys: lists of keys, one a batch.
        workers: processes; 0 decodes in this one. Same batches for any number.
        pin: put batches into pinned memory, for copies to a GPU that do not wait.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=keys,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_ignore_signals,
    )
    iterator = iter(loader)
    try:
        yield _told_plainly(iterator)
    finally:
        # workers ignore SIGTERM (below), so they must be told to end before the interpreter waits for them
        if workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


def _told_plainly(iterator: Iterator[Any]) -> Iterator[Any]:
    """The same batches; a worker's UserError without the traceback the loader puts before it."""
    try:
        yield from iterator
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None


def _as_is(batch: Any) -> Any:
    return batch


def _ignore_signals(worker: int) -> None:
    """A signal to the whole job is for the training process, which still needs its workers to finish a step."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

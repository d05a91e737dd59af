"""What the views of an image cost one core, stage by stage: PIL's way and the fast one, in turn, on the same images.

The images are made up (`photograph`): JPEG files of 500 x 375 pixels and some 95 kB. Times are CPU time, which other
work on the machine disturbs less than the clock's.
"""

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms

from mgd_ssl.bench.photographs import jpeg, photograph
from mgd_ssl.data.decode import decode, decode_pixels
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.images import Unreadable
from mgd_ssl.data.loader import batches
from mgd_ssl.data.ring import view_batches
from mgd_ssl.data.samples import Backend, Space, TwoViews
from mgd_ssl.data.views_cpu import Pixels, cut_view, finish_view
from moco import ViewPolicy, draw_view, render_view

NUM_IMAGES = 20  # a stage handles all of them before it is the next one's turn
HANDOVER_BATCH = 32
HANDOVER_BYTES = 200e6  # handed over, after a start that is measured alone and subtracted
POLICY = ViewPolicy()
CPU = torch.device("cpu")

Stage = Callable[[], None]  # handles all images once


@dataclass(frozen=True)
class Cost:
    """CPU time of a stage in microseconds an image (both views), medians over the rounds."""

    reference: float
    fast: float
    ratio: float  # median of the rounds' own ratios
    spread: float  # distance between their quartiles


def measure_views(size: int, rounds: int) -> dict[str, Cost]:
    """Cost of every stage.

    Args:
        size: edge of a view in pixels.
        rounds: in each, every stage is run by both in turn; one more is not counted.
    """
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)  # as in a data worker
    cv2.setNumThreads(0)
    try:
        stages = Stages(size).all()
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in stages}
        for _ in range(1 + rounds):
            for name, (pil, fast) in stages.items():
                times[name].append((_timed(pil), _timed(fast)))
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    return {name: _cost(measured[1:]) for name, measured in times.items()}


def _timed(stage: Stage) -> float:
    """Microseconds of CPU time an image."""
    started = time.process_time()
    stage()
    return (time.process_time() - started) / NUM_IMAGES * 1e6


def _cost(times: Sequence[tuple[float, float]]) -> Cost:
    pil, fast = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [one / other for one, other in times]
    low, middle, high = np.percentile(ratios, (25, 50, 75)).tolist()
    return Cost(round(pil, 1), round(fast, 1), round(middle, 2), round(high - low, 2))


class InMemory(ImageList):
    """Files that need not be read."""

    def __init__(self, files: Sequence[bytes]) -> None:
        super().__init__(Path(), [f"{i:04d}.jpg" for i in range(len(files))])
        self.files = files

    def read(self, index: int) -> bytes:
        """The encoded image."""
        return self.files[index]


class Stages:
    """Each stage of the views as a pair of functions: PIL's way, and the fast one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.files = [jpeg(photograph(seed)) for seed in range(NUM_IMAGES)]
        self.images = [decode(file) for file in self.files]
        self.pixels = [decode_pixels(file) for file in self.files]
        self.views = [
            [draw_view(POLICY, *image.size, seed=0, epoch=0, index=i, view=v) for v in range(2)]
            for i, image in enumerate(self.images)
        ]
        self.cut: Pixels = np.zeros((NUM_IMAGES, 2, size, size, 3), np.uint8)
        for pixels, views, cut in zip(self.pixels, self.views, self.cut, strict=True):
            for v, view in enumerate(views):
                cut_view(pixels, view, cut[v])

    def all(self) -> dict[str, tuple[Stage, Stage]]:
        """By name. `whole` starts from our rendering with PIL, `published` from torchvision's transforms, which end in
        normalised floats; beside them is what a data worker does for the cpu and device backends."""
        reference, cpu, device = (self.whole(backend) for backend in ("reference", "cpu", "device"))
        return {
            "decode": self.decode(),
            "crop and resize": self.resize(),
            "colours": self.finish(sigma=0),
            "blur": self.finish(brightness=1, contrast=1, saturation=1, hue=0, grey=0),
            "whole, cpu": (reference, cpu),
            "whole, device": (reference, device),
            "published, cpu": (self.published, cpu),
            "published, device": (self.published, device),
        }

    def decode(self) -> tuple[Stage, Stage]:
        """From a file to its pixels."""

        def reference() -> None:
            for file in self.files:
                decode(file)

        def fast() -> None:
            for file in self.files:
                decode_pixels(file)

        return reference, fast

    def resize(self) -> tuple[Stage, Stage]:
        """The geometric part alone."""
        neutral = {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0, "grey": 0, "sigma": 0}
        views = [[view._replace(**neutral) for view in pair] for pair in self.views]
        out = np.empty((self.size, self.size, 3), np.uint8)

        def reference() -> None:
            for image, pair in zip(self.images, views, strict=True):
                for view in pair:
                    out[:] = np.asarray(render_view(image, view, self.size))

        def fast() -> None:
            for pixels, pair in zip(self.pixels, views, strict=True):
                for view in pair:
                    cut_view(pixels, view, out)

        return reference, fast

    def finish(self, **neutral: float) -> tuple[Stage, Stage]:
        """What comes after the geometric part, with some of it left out."""
        whole = {"left": 0, "top": 0, "width": self.size, "height": self.size, "flip": 0, **neutral}
        cut = [pixels for pair in self.cut for pixels in pair]
        views = [view._replace(**whole) for pair in self.views for view in pair]
        images = [Image.fromarray(pixels) for pixels in cut]
        out = np.empty_like(cut[0])

        def reference() -> None:
            for image, view in zip(images, views, strict=True):
                render_view(image, view, self.size)

        def fast() -> None:
            for pixels, view in zip(cut, views, strict=True):
                out[:] = pixels
                finish_view(out, view)

        return reference, fast

    def whole(self, backend: Backend) -> Stage:
        """From the files to a batch, as a data worker does it."""
        dataset = TwoViews(InMemory(self.files), POLICY, self.size, 0, backend)
        space = dataset.space(NUM_IMAGES)
        keys = [(0, i) for i in range(NUM_IMAGES)]
        return lambda: _discard(dataset.fill(keys, space))

    def published(self) -> None:
        """From the files to views as normalised floats, with the transforms of MoCo's program."""
        transform = published_transforms(self.size)
        for file in self.files:
            image = decode(file)
            for _ in range(2):
                transform(image)


def published_transforms(size: int) -> Callable[[Image.Image], Tensor]:
    """MoCo v2's augmentation as in main_moco.py of https://github.com/facebookresearch/moco."""
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    blur = transforms.RandomApply([_pil_blur], p=0.5)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
            jitter,
            transforms.RandomGrayscale(p=0.2),
            blur,
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def _pil_blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(float(np.random.uniform(0.1, 2.0))))


def _discard(result: object) -> None:
    """Turn a function into one without a result."""


# hand-over


class Copied(TwoViews):
    """Views that are there already, so that only their way to the training process costs something."""

    def __init__(self, size: int) -> None:
        super().__init__(ImageList(Path(), ["none"]), POLICY, size, 0, "cpu")
        self.views = np.ones((2, HANDOVER_BATCH, size, size, 3), np.uint8)

    def fill(self, keys: Sequence[tuple[int, int]], space: Space) -> list[Unreadable]:
        """Copy them."""
        np.copyto(space.views.numpy(), self.views)
        return []


def handover(size: int, rounds: int) -> tuple[float, float]:
    """Microseconds of CPU time an image, of a data worker and of the training process together, to copy views into
    shared memory and out of it again: through the ring, and through fresh memory for every batch."""
    dataset = Copied(size)
    costs = [(_handover(dataset, True), _handover(dataset, False)) for _ in range(rounds)]
    ring, fresh = (statistics.median(column) for column in zip(*costs, strict=True))
    return round(ring, 1), round(fresh, 1)


def _handover(dataset: Copied, ring: bool) -> float:
    start, more = 4, max(1, int(HANDOVER_BYTES / dataset.views.nbytes))  # batches
    short, long = (_cpu_seconds(dataset, ring, count) for count in (start, start + more))
    return (long - short) / (more * HANDOVER_BATCH) * 1e6


def _cpu_seconds(dataset: Copied, ring: bool, num_batches: int) -> float:
    keys = [[(0, 0)] * HANDOVER_BATCH] * num_batches
    staging = torch.empty_like(torch.from_numpy(dataset.views))
    started = _spent()
    way = view_batches(dataset, keys, HANDOVER_BATCH, 1, CPU) if ring else batches(dataset, keys, 1, pin=False)
    with way as iterator:
        for batch in iterator:
            staging[0].copy_(batch.im_q)
            staging[1].copy_(batch.im_k)
    return _spent() - started


def _spent() -> float:
    """CPU seconds of this process and of its workers that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)

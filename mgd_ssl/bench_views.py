"""What the views of an image cost one core, stage by stage: PIL's way and the fast one, in turn, on the same images.

The images are made up (`photograph`): JPEG files of 500 x 375 pixels and some 95 kB. Times are CPU time, which other
work on the machine disturbs less than the clock's.
"""

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms

from mgd_ssl.data import Space, TwoViews, batches
from mgd_ssl.images import ImageList, Unreadable, decode
from mgd_ssl.jpeg import decode_pixels
from mgd_ssl.photograph import jpeg, photograph
from mgd_ssl.ring import view_batches
from moco import View, ViewPolicy, draw_view, render_view
from moco.augment_cpu import Pixels, cut_view, finish_view, render_view_fast

NUM_IMAGES = 20  # a stage handles all of them before it is the next one's turn
HANDOVER_BATCH = 32
HANDOVER_BATCHES = (4, 24)  # the difference of the two is free of what starting a worker costs
POLICY = ViewPolicy()
CPU = torch.device("cpu")

Stage = Callable[[int], None]  # handles the image of that number


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
    for i in range(NUM_IMAGES):
        stage(i)
    return (time.process_time() - started) / NUM_IMAGES * 1e6


def _cost(times: Sequence[tuple[float, float]]) -> Cost:
    pil, fast = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [one / other for one, other in times]
    low, middle, high = np.percentile(ratios, (25, 50, 75)).tolist()
    return Cost(round(pil, 1), round(fast, 1), round(middle, 2), round(high - low, 2))


class Stages:
    """Each stage of the views as a pair of functions of an image's number: PIL's, and the fast one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.files = [jpeg(photograph(seed)) for seed in range(NUM_IMAGES)]
        self.images = [decode(file) for file in self.files]
        self.pixels = [decode_pixels(file) for file in self.files]
        self.views = [tuple(self.draw(i)) for i in range(NUM_IMAGES)]
        self.out: Pixels = np.zeros((2, size, size, 3), np.uint8)
        self.cut = np.zeros((NUM_IMAGES, 2, size, size, 3), np.uint8)
        for i, views in enumerate(self.views):
            for v, view in enumerate(views):
                cut_view(self.pixels[i], view, self.cut[i, v])
        self.published = published(size)

    def draw(self, i: int) -> Iterator[View]:
        """The two views of an image."""
        for v in range(2):
            yield draw_view(POLICY, *self.images[i].size, seed=0, epoch=0, index=i, view=v)

    def all(self) -> dict[str, tuple[Stage, Stage]]:
        """By name. `whole` starts from PIL's rendering of the same table, `published` from torchvision's transforms,
        which end in normalised floats; beside them is what a data worker does for the cpu and device backends."""
        return {
            "decode": (lambda i: _discard(decode(self.files[i])), lambda i: _discard(decode_pixels(self.files[i]))),
            "crop and resize": self.resize(),
            "colours": self.finish(sigma=0),
            "blur": self.finish(brightness=1, contrast=1, saturation=1, hue=0, grey=0),
            "whole, cpu": (self.whole_reference, self.whole_fast),
            "whole, device": (self.whole_reference, lambda i: self.whole_fast(i, cut_view)),
            "published, cpu": (self.whole_published, self.whole_fast),
            "published, device": (self.whole_published, lambda i: self.whole_fast(i, cut_view)),
        }

    def resize(self) -> tuple[Stage, Stage]:
        """The geometric part alone."""
        neutral = {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0, "grey": 0, "sigma": 0}
        views = [[view._replace(**neutral) for view in pair] for pair in self.views]

        def reference(i: int) -> None:
            for v in range(2):
                self.out[v] = np.asarray(render_view(self.images[i], views[i][v], self.size))

        def fast(i: int) -> None:
            for v in range(2):
                cut_view(self.pixels[i], views[i][v], self.out[v])

        return reference, fast

    def finish(self, **neutral: float) -> tuple[Stage, Stage]:
        """What comes after the geometric part, with some of it left out."""
        whole = {"left": 0, "top": 0, "width": self.size, "height": self.size, "flip": 0, **neutral}
        views = [[view._replace(**whole) for view in pair] for pair in self.views]
        images = [[Image.fromarray(pixels) for pixels in pair] for pair in self.cut]

        def reference(i: int) -> None:
            for v in range(2):
                render_view(images[i][v], views[i][v], self.size)

        def fast(i: int) -> None:
            for v in range(2):
                finish_view(self.cut[i, v], views[i][v])

        return reference, fast

    def whole_reference(self, i: int) -> None:
        """From the file to both views, with PIL."""
        image = decode(self.files[i])
        for v, view in enumerate(self.draw(i)):
            self.out[v] = np.asarray(render_view(image, view, self.size))

    def whole_fast(self, i: int, render: Callable[[Pixels, View, Pixels], None] = render_view_fast) -> None:
        """From the file to both views, or with `cut_view` to those the device has to finish."""
        pixels = decode_pixels(self.files[i])
        for v, view in enumerate(self.draw(i)):
            render(pixels, view, self.out[v])

    def whole_published(self, i: int) -> None:
        """From the file to both views as normalised floats, with the transforms of MoCo's program."""
        image = decode(self.files[i])
        for _ in range(2):
            self.published(image)


def published(size: int) -> Callable[[Image.Image], Tensor]:
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
    short, long = (_cpu_seconds(dataset, ring, count) for count in HANDOVER_BATCHES)
    return (long - short) / ((HANDOVER_BATCHES[1] - HANDOVER_BATCHES[0]) * HANDOVER_BATCH) * 1e6


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

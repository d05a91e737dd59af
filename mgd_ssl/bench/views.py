"""What the views of an image cost one core, stage by stage: PIL's way and the fast one, in turn, on the same images.

The images are made up (`photograph`): JPEG files of 500 x 375 pixels and some 95 kB. Times are CPU time, which other
work on the machine disturbs less than the clock's.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from mgd_ssl.bench.photographs import jpeg, photograph
from mgd_ssl.bench.timing import Times, compared
from mgd_ssl.data.decode import decode, decode_pixels
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.samples import Backend, TwoViews
from mgd_ssl.data.views_cpu import Pixels, cut_view, finish_view
from moco import ViewKey, ViewPolicy, draw_view, render_view

NUM_IMAGES = 20  # a stage handles all of them before it is the next one's turn
POLICY = ViewPolicy()
WAYS = ("reference", "fast")

Stage = Callable[[], None]  # handles all images once


@dataclass(frozen=True)
class Cost:
    """CPU time of a stage in microseconds an image (both views), medians over the rounds."""

    reference: float
    fast: float
    ratio: float  # median of the rounds' own ratios
    spread: float  # distance between their quartiles


def stage_costs(stages: Mapping[str, tuple[Stage, Stage]], rounds: int) -> dict[str, Cost]:
    """Cost of every stage.

    Args:
        stages: the reference, and the fast way, each for `NUM_IMAGES` images.
        rounds: in each, every stage is run both ways in turn; one more is not counted.
    """
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)  # as in a data worker
    cv2.setNumThreads(0)
    ways = {f"{way} {name}": stage for name, pair in stages.items() for way, stage in zip(WAYS, pair, strict=True)}
    try:
        times = compared(ways, rounds, clock=time.process_time)
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    return {name: _cost(times, *(f"{way} {name}" for way in WAYS)) for name in stages}


def _cost(times: Times, reference: str, fast: str) -> Cost:
    slow_us, fast_us = (times.median(name) / NUM_IMAGES * 1e6 for name in (reference, fast))
    low, middle, high = np.percentile(times.ratios(reference, fast), (25, 50, 75)).tolist()
    return Cost(round(slow_us, 1), round(fast_us, 1), round(middle, 2), round(high - low, 2))


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
            [draw_view(POLICY, *image.size, ViewKey(seed=0, epoch=0, image=i, view=v)) for v in range(2)]
            for i, image in enumerate(self.images)
        ]
        self.cut: Pixels = np.zeros((NUM_IMAGES, 2, size, size, 3), np.uint8)
        for pixels, views, cut in zip(self.pixels, self.views, self.cut, strict=True):
            for v, view in enumerate(views):
                cut_view(pixels, view, cut[v])

    def all(self) -> dict[str, tuple[Stage, Stage]]:
        """By name; `whole` is what a data worker does for the cpu and device backends."""
        reference, cpu, device = (self.whole(backend) for backend in ("reference", "cpu", "device"))
        return {
            "decode": self.decode(),
            "crop and resize": self.resize(),
            "colours": self.finish(sigma=0),
            "blur": self.finish(brightness=1, contrast=1, saturation=1, hue=0, grey=0),
            "whole, cpu": (reference, cpu),
            "whole, device": (reference, device),
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


def _discard(result: object) -> None:
    """Turn a function into one without a result."""

"""Features of centre crops on disk, computed once for a backbone and a folder of images."""

import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from linear_eval.frozen import FrozenBackbone
from mgd_ssl.errors import TrainingError, UserError
from mgd_ssl.features import Features, extract_features
from mgd_ssl.images import Images, Unreadable
from mgd_ssl.log import logger
from mgd_ssl.runtime import Runtime, on_rank_zero
from moco.dist import world_size

BATCH = 64  # images in a forward pass
PART_SECONDS = 20  # time between two looks at whether to stop
LARGEST_PART = 65536  # images whose features are held in memory at a time


def cached_features(
    folder: Path,
    name: str,
    backbone: FrozenBackbone,
    images: Images,
    labels: np.ndarray,
    runtime: Runtime,
    *,
    image_size: int,
    workers: int,
    report: Callable[[Sequence[Unreadable]], None],
    check_stop: Callable[[], None] = lambda: None,
) -> Features:
    """Raw features [n, d] (memory-mapped) and labels [n] of all images; from disk where they are there already.

    Args:
        folder: where the cache is, shared by all protocols and seeds.
        name: of the images in messages.
        backbone: on the device.
        images: of which the features are.
        labels: class index of every image.
        runtime: device and precision.
        image_size: edge of the crop in pixels.
        workers: data processes.
        report: told of unreadable images, whose replacements bring their own labels.
        check_stop: called now and then on all ranks; what it raises ends the computation, and nothing is kept.

    Raises:
        UserError: when the folder cannot be written, or features are not finite.
    """
    sha256, precision = backbone.report.sha256, str(runtime.precision or "float32").removeprefix("torch.")
    key = on_rank_zero(lambda: f"{sha256[:16]}_{images.state()[:16]}_{image_size}_{precision}")
    place = folder / key
    if on_rank_zero(lambda: (place / "labels.npy").is_file()):
        logger.info("features of %s: from %s", name, place)
        return read(place)
    writer = Writer(place, len(images))
    started = time.monotonic()
    done, size = 0, BATCH * world_size()
    try:
        while done < len(images):
            check_stop()
            rows = np.arange(done, min(done + size, len(images)))
            part = extract_features(
                backbone, images, labels, rows, runtime,
                image_size=image_size, batch_size=BATCH, workers=workers, normalise=False, report=report,
            )  # fmt: skip
            check_finite(part.values, rows, images, backbone)
            on_rank_zero(partial(writer.write, part))
            done += len(rows)
            speed = done / on_rank_zero(lambda: time.monotonic() - started)
            left = round((len(images) - done) / speed)
            logger.info("features of %s: %d of %d, %d s left", name, done, len(images), left)
            # whole batches, so that what is in a batch does not depend on the clock
            size = BATCH * world_size() * max(1, int(min(LARGEST_PART, PART_SECONDS * speed)) // (BATCH * world_size()))
        on_rank_zero(writer.finish)
    finally:
        writer.discard()
    return read(place)


def read(place: Path) -> Features:
    """A cache entry; pages are copied when written to, so the files stay as they are."""
    return Features(np.load(place / "values.npy", mmap_mode="c"), np.load(place / "labels.npy"))


def check_finite(values: np.ndarray, rows: np.ndarray, images: Images, backbone: FrozenBackbone) -> None:
    """Raise UserError unless all features [n, d] of the images `rows` [n] are finite."""
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        raise UserError(
            f"the features of {images.root / images.name(int(rows[broken[0]]))} are not finite: the weights in "
            f"{backbone.report.path} are broken, or need --runtime.precision float32"
        )


class Writer:
    """A cache entry that is there whole or not at all: a folder that gets its name when it is finished.

    Args:
        place: the entry.
        total: images.
    """

    def __init__(self, place: Path, total: int) -> None:
        self.place, self.total, self.done = place, total, 0
        self.temporary = place.with_name(f".{place.name}.{platform.node()}.{os.getpid()}.tmp")
        self.values: np.memmap | None = None
        self.labels = np.empty(total, dtype=np.int64)

    def write(self, part: Features) -> None:
        """Append features."""
        rows = slice(self.done, self.done + len(part.labels))
        try:
            if self.values is None:
                self._remove_leftovers()
                self.temporary.mkdir(parents=True, exist_ok=True)
                self._reserve(self.total * part.values.shape[1] * 4)
                self.values = np.lib.format.open_memmap(
                    self.temporary / "values.npy", mode="w+", dtype=np.float32, shape=(self.total, part.values.shape[1])
                )
            self.values[rows], self.labels[rows] = part.values, part.labels
        except OSError as error:
            raise self._unwritable(error) from error
        self.done = rows.stop

    def finish(self) -> None:
        """Give the entry its name."""
        assert self.values is not None and self.done == self.total
        try:
            self.values.flush()
            np.save(self.temporary / "labels.npy", self.labels)
            self.temporary.rename(self.place)
        except OSError as error:
            if not (self.place / "labels.npy").is_file():  # else another process was faster
                raise self._unwritable(error) from error

    def discard(self) -> None:
        """Remove what is unfinished."""
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for folder in self.place.parent.glob(f".{self.place.name}.{platform.node()}.*.tmp"):  # of killed processes
            try:
                os.kill(int(folder.name.split(".")[-2]), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)

    def _reserve(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.temporary).free  # a full disk under a memory map would kill the process
        if free < num_bytes:
            raise UserError(
                f"{self.place.parent} needs {num_bytes / 2**30:.1f} GiB for features but has {free / 2**30:.1f}: "
                "make room, or choose another --out"
            )

    def _unwritable(self, error: OSError) -> TrainingError:
        return TrainingError(f"{self.place} cannot be written ({error.strerror}): make room, or choose another --out")

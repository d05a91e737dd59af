"""Features of centre crops on disk, computed once for a backbone and a folder of images."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO

import numpy as np

from linear_eval.checksum import ACCOUNT, checked
from linear_eval.checksum import Account as RowsAccount
from mgd_ssl.data.decode import DECODER_VERSION
from mgd_ssl.data.images import Images
from mgd_ssl.data.loader import Account, Reading
from mgd_ssl.data.samples import CROP_VERSION
from mgd_ssl.data.sources import Labelled
from mgd_ssl.errors import Interrupted, UserError
from mgd_ssl.evaluation.features import FeatureExtractor, Features
from mgd_ssl.files import ELSEWHERE, DiskError, take_room, write_whole, writing
from mgd_ssl.networks.frozen import FrozenBackbone
from mgd_ssl.run.lock import take
from mgd_ssl.run.log import logger
from mgd_ssl.run.runtime import Runtime, on_rank_zero
from moco.dist import rank, world_size

BATCH = 64  # images in a forward pass
PART_SECONDS = 20  # time between two looks at whether to stop
WAIT_SECONDS = 1  # between two looks at whether another process is done
LARGEST_PART = 65536  # images whose features are held in memory at a time


class FeatureCache:
    """Raw features of centre crops on disk, shared by all protocols and seeds.

    On disk are the features and which image each is of (another one in place of an unreadable one), but no labels: the
    same images may have others the next time. Features that are not what was written are computed anew.

    Args:
        folder: where it is.
        backbone: on the device.
        runtime: device and precision.
        image_size: edge of the crop in pixels.
        workers: data processes.
    """

    def __init__(
        self, folder: Path, backbone: FrozenBackbone, runtime: Runtime, image_size: int, workers: int = 0
    ) -> None:
        self.folder, self.backbone, self.runtime = folder, backbone, runtime
        self.image_size, self.workers = image_size, workers

    def features(
        self, name: str, labelled: Labelled, account: Account, check_stop: Callable[[], None] = lambda: None
    ) -> Features:
        """Features [n, d] (memory-mapped) and labels [n] of all images; from disk where they are there already.

        Args:
            name: of the images in messages.
            labelled: images and their labels.
            account: told of unreadable images, whose replacements bring their own labels.
            check_stop: called now and then on all ranks; what it raises ends the computation; what is done is kept if
                that is `Interrupted`, and the next call continues from there.

        Raises:
            UserError: when features are not finite.
            DiskError: when the folder cannot be written.
        """
        images, labels = labelled
        place = on_rank_zero(lambda: self.folder / self.key(images))
        if on_rank_zero(lambda: damage(place, len(images)) is None):
            logger.info("features of %s: from %s", name, place)
            return read(place, labels)
        with alone(place, name, check_stop):
            if on_rank_zero(lambda: cleared(place, name, len(images))):
                self._compute(place, name, images, account, check_stop)
        return read(place, labels)

    def key(self, images: Images) -> str:
        """Of all that the features depend on."""
        precision = str(self.runtime.precision or "float32").removeprefix("torch.")
        made_by = f"d{DECODER_VERSION}c{CROP_VERSION}"
        sha256, state = self.backbone.report.sha256, images.state()
        return f"{sha256[:16]}_{state[:16]}_{self.image_size}_{precision}_{made_by}"

    def _compute(
        self, place: Path, name: str, images: Images, account: Account, check_stop: Callable[[], None]
    ) -> None:
        """Fill an entry, from where an earlier process was stopped or killed; arguments as of `features`."""
        writer = Writer(place, len(images))
        done = on_rank_zero(writer.open)
        if done:
            logger.info("features of %s: continuing after %d of %d", name, done, len(images))
        indices = Labelled(images, np.arange(len(images)))  # in the place of labels: which image a feature is of
        features = FeatureExtractor(self.backbone, self.runtime, self.image_size, normalise=False)
        reading = Reading(BATCH, self.workers, account=account)
        earlier, started = done, time.monotonic()
        size = whole = BATCH * world_size()
        keep = False
        try:
            while done < len(images):
                check_stop()
                rows = np.arange(done, min(done + size, len(images)))
                part = features(indices, rows, reading)
                check_finite(part.values, rows, images, self.backbone)
                on_rank_zero(partial(writer.write, part))
                done += len(rows)
                speed = (done - earlier) / on_rank_zero(lambda: time.monotonic() - started)
                left = round((len(images) - done) / speed)
                logger.info("features of %s: %d of %d, %d s left", name, done, len(images), left)
                # whole batches, so that what is in a batch does not depend on the clock
                size = whole * max(1, int(min(LARGEST_PART, PART_SECONDS * speed)) // whole)
            on_rank_zero(writer.finish)
        except Interrupted:
            keep = True
            raise
        except DiskError:
            keep = writer.account.done > 0
            raise
        finally:
            if not keep and rank() == 0:
                writer.discard()


def damage(place: Path, total: int) -> str | None:
    """What is wrong with a cache entry of `total` images, None when it is whole."""
    try:
        account, _, _ = checked(place, total, "c")
    except (OSError, ValueError) as error:
        return str(error)
    return None if account.done == total else f"only {account.done} of {total} images are there"


def cleared(place: Path, name: str, total: int) -> bool:
    """Whether a cache entry has to be computed; a damaged one is removed, with a warning."""
    wrong = damage(place, total)
    if wrong is not None and place.exists():
        logger.warning("features of %s: those in %s are damaged (%s), computing them anew", name, place, wrong)
        shutil.rmtree(place, ignore_errors=True)
    return wrong is not None  # else another process has just finished it


@contextmanager
def alone(place: Path, name: str, check_stop: Callable[[], None]) -> Iterator[None]:
    """Keep other processes from computing a cache entry, after waiting for one that does."""
    locks: list[IO[str]] = []  # open while the block runs

    def open_lock() -> None:
        with writing(place, ELSEWHERE):
            place.parent.mkdir(parents=True, exist_ok=True)
            locks.append(place.with_name(f".{place.name}.lock").open("w"))

    on_rank_zero(open_lock)
    try:
        for attempt in count():
            if on_rank_zero(lambda: take(locks[0])):
                break
            if attempt == 0:
                logger.info("features of %s: another process computes them, waiting for it", name)
            time.sleep(WAIT_SECONDS)
            check_stop()
        yield
    finally:
        for lock in locks:
            lock.close()


def read(place: Path, labels: np.ndarray) -> Features:
    """A cache entry with the labels [n] of its images; pages are copied when written to, so the files stay as they
    are."""
    return Features(np.load(place / "values.npy", mmap_mode="c"), labels[np.load(place / "rows.npy")])


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

    What is in the unfinished folder up to the number in its account is whole too, whatever ends the process.

    Args:
        place: the entry.
        total: images.
    """

    def __init__(self, place: Path, total: int) -> None:
        self.place, self.total, self.account = place, total, RowsAccount()
        self.unfinished = place.with_name(f".{place.name}.unfinished")
        self.values: np.ndarray | None = None  # [total, d], mapped
        self.rows: np.ndarray | None = None  # [total], mapped

    def open(self) -> int:
        """Take over an unfinished entry; returns how many of its rows are there."""
        try:
            account, values, rows = checked(self.unfinished, self.total, "r+")
        except (OSError, ValueError):  # there is none, it is damaged, or was cut off before its first rows were whole
            self.discard()
            return 0
        with writing(self.place, ELSEWHERE):
            self._allocate()
        self.values, self.rows, self.account = values, rows, account
        return account.done

    def write(self, part: Features) -> None:
        """Append features, with the images they are of in the place of labels."""
        rows = slice(self.account.done, self.account.done + len(part.labels))
        account = self.account.extended(part.values, part.labels)
        with writing(self.place, ELSEWHERE):
            if self.values is None or self.rows is None:
                self.unfinished.mkdir(parents=True)
                dim = part.values.shape[1]
                self._reserve(self.total * dim * 4)
                self.values = self._table("values", np.float32, (self.total, dim))
                self.rows = self._table("rows", np.int64, (self.total,))
                self._allocate()
            self.values[rows], self.rows[rows] = part.values, part.labels
            self._flush()
            write_whole(self.unfinished / ACCOUNT, account.text())
        self.account = account

    def finish(self) -> None:
        """Give the entry its name."""
        assert self.account.done == self.total
        with writing(self.place, ELSEWHERE):
            self.unfinished.rename(self.place)

    def discard(self) -> None:
        """Remove what is unfinished."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def _table(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        return np.lib.format.open_memmap(self.unfinished / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

    def _allocate(self) -> None:
        """Take the room of both tables, because a full disk under a memory map would kill the process."""
        for name in ("values", "rows"):
            with (self.unfinished / f"{name}.npy").open("r+b") as file:
                take_room(file)

    def _flush(self) -> None:
        for table in (self.values, self.rows):
            assert isinstance(table, np.memmap)
            table.flush()

    def _reserve(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.unfinished).free
        if free < num_bytes:
            raise DiskError(
                f"{self.place} cannot be written (it takes {num_bytes / 2**20:.1f} MiB of features, {free / 2**20:.1f} "
                f"are free): make room, {ELSEWHERE}"
            )

"""Opening a million packed images: seconds, and memory of every process that reads them.

    python -m benchmarks.shards

Packs images of one pixel (they are read, not decoded), then opens them in fresh processes by the index beside the
shards, as other people's shards (one scan), and by the index this leaves in the cache. A worker is a process started
from one that has them open, as a data loader's are, and reads images at random; its memory is what is its own alone
(`Private_*` of /proc/PID/smaps_rollup), less that of an equal process that got no images.
"""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.table import Table

from mgd_ssl.bench.memory import in_process
from mgd_ssl.bench.tables import show
from mgd_ssl.bench.timing import timed
from mgd_ssl.data.config import PackConfig
from mgd_ssl.data.images import Images
from mgd_ssl.data.pack import pack_images
from mgd_ssl.data.sources import open_images

PIXEL = b"P5 1 1 255 \0"  # a whole image
CLASSES = 1000


class Pixels(Images):
    """Generated images of one pixel with the names ImageNet's have."""

    def __init__(self, count: int) -> None:
        self.count, self.root, self.ignored = count, Path("generated"), []

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Class and number."""
        return f"n{index * CLASSES // self.count:08d}/n{index:08d}_{index % 1300}.pgm"

    def read(self, index: int) -> bytes:
        """The pixel."""
        return PIXEL

    def labels(self) -> tuple[np.ndarray, list[str]]:
        """Equally many of each class."""
        return np.arange(self.count) * CLASSES // self.count, [f"n{i:08d}" for i in range(CLASSES)]

    def fingerprint(self) -> str:
        """That of their number."""
        return str(self.count)

    def state(self) -> str:
        """That of their number."""
        return str(self.count)


def main(images: int = 1_000_000, workers: int = 2, reads: int = 20_000, folder: Path | None = None) -> None:
    """Print a table, and the same as JSON on the last line.

    Args:
        images: in all shards together.
        workers: that read, one after the other.
        reads: images each of them reads, at random.
        folder: where shards are made unless they are there; None: a temporary one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(Path(temporary) / "cache")
        seconds, written = timed(partial(pack_pixels, images, place / "packed"))
        result: dict[str, Any] = {"images": images, "megabytes": written, "pack_s": seconds}
        ways = {"by its index": "packed", "scanned": "packed/*.tar", "by a cached index": "packed/*.tar"}
        for name, path in ways.items():
            result[name] = in_process("spawn", measured, place / path, workers, reads)
    report(result, ways)


def pack_pixels(count: int, out: Path) -> float:
    """Pack generated images; returns the size in MB."""
    pixels = Pixels(count)
    return pack_images(pixels, PackConfig(images=pixels.root, out=out, workers=0), out).megabytes


def measured(path: Path, workers: int, reads: int) -> dict[str, float]:
    """Seconds to open, to hash and to label images, memory, and what readers take."""
    before = private_megabytes()
    opening, images = timed(partial(open_images, path))
    found = {"open_s": opening, "open_MB": private_megabytes() - before}
    found |= {"fingerprint_s": timed(images.fingerprint)[0], "labels_s": timed(images.labels)[0]}
    starts: tuple[Literal["fork", "spawn"], ...] = ("fork", "spawn")
    for start in starts:
        nothing, _ = in_process(start, read_some, None, reads)
        several = [in_process(start, read_some, images, reads) for _ in range(workers)]
        found[f"{start}_worker_MB"] = max(megabytes for megabytes, _ in several) - nothing
        found[f"{start}_reads_per_s"] = min(speed for _, speed in several)
    return found


def read_some(images: Images | None, reads: int) -> tuple[float, float]:
    """Memory of this process alone after reading images at random, and images a second."""

    def read() -> None:
        if images is not None:
            for index in np.random.default_rng(os.getpid()).integers(len(images), size=reads).tolist():
                images.name(index)
                assert images.read(index) == PIXEL

    seconds, _ = timed(read)
    return private_megabytes(), reads / seconds


def private_megabytes() -> float:
    """Memory that this process shares with no other one."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def report(result: dict[str, Any], ways: dict[str, str]) -> None:
    """Table and JSON."""
    title = f"{result['images']:,} images, {result['megabytes']:,.0f} MB of shards, packed in {result['pack_s']:,.0f} s"
    table = Table("what", *ways, title=title, title_justify="left")
    for key in result["scanned"]:
        table.add_row(key, *(f"{result[way][key]:,.2f}" for way in ways))
    show(table, result)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.shards")

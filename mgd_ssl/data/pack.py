"""`mgd-ssl pack`: images rewritten once into tar shards of WebDataset's layout, with the index that opens them."""

import json
import signal
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from mgd_ssl.config import Decoding
from mgd_ssl.console import progress_bar
from mgd_ssl.data.config import PackConfig
from mgd_ssl.data.images import Images
from mgd_ssl.data.loader import batches
from mgd_ssl.data.order import chunks
from mgd_ssl.data.packing import Packed, Packing
from mgd_ssl.data.shard_index import IndexBuilder, ShardIndex
from mgd_ssl.data.shard_scan import scan_shard
from mgd_ssl.data.shards import INDEX_ERRORS, INDEX_NAME, PART
from mgd_ssl.data.sources import open_images
from mgd_ssl.data.tar_writer import Keys, add_sample
from mgd_ssl.errors import Interrupted, TrainingError, UserError
from mgd_ssl.files import whole_file, write_whole, writing
from mgd_ssl.run.environment import environment
from mgd_ssl.run.folder import run_folder
from mgd_ssl.run.log import logger
from mgd_ssl.run.runtime import cores_here
from mgd_ssl.run.stop import StopRequest
from mgd_ssl.setting_keys import differences

CHUNK = 16  # images a worker hands over at a time


@dataclass(frozen=True)
class PackResult:
    """What a finished pack is; also its `result.json`."""

    out: str  # folder of the shards
    images: int
    shards: int
    megabytes: float  # of the shards, in units of 10^6 bytes
    left_out: int  # images that could not be read, listed in skipped.jsonl
    classes: int  # 0 without labels


def pack(config: PackConfig | None = None, **settings: Any) -> PackResult:
    """Rewrite images into shards, or continue where an earlier call was stopped.

    Args:
        config: all settings; or pass them by name: `pack(images="imagenet/train", out="shards/train", short_side=320)`.

    Returns:
        The result; at once when the pack is finished already.

    Raises:
        UserError: when a setting, a file or a folder is at fault; nothing was written.
        TrainingError: when it had to stop; finished shards stay.
        Interrupted: after SIGTERM, SIGINT, SIGUSR2 or SIGHUP; finished shards stay.
        ValueError: for unknown settings or values out of range.
    """
    config = config or PackConfig(**settings)
    images = open_images(config.images, Decoding(config.background, config.max_pixels))
    return pack_images(images, config, config.out)


def pack_images(images: Images, config: PackConfig, out: Path) -> PackResult:
    """Rewrite images that are open already; `pack` for the rest."""
    packer = Packer(config, out, images)
    with run_folder(out, description(config, images), check_same_pack) as finished:
        if finished is None:
            finished = asdict(packer.run())
        else:
            packer.mend(int(finished["left_out"]))
        packer.remove_parts()
        return PackResult(**{**finished, "out": str(out)})


def description(config: PackConfig, images: Images) -> dict[str, Any]:
    """What a pack is, as saved in its `config.json`."""
    wanted = ("short_side", "quality", "shard_images", "labels", "background", "max_pixels")
    return {
        "config": config.model_dump(mode="json", include=set(wanted)) | {"images": images.fingerprint()},
        "environment": environment(),
    }


def check_same_pack(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise UserError when a folder holds a pack with other settings or of other images."""
    if changed := differences(old["config"], new["config"]):
        raise UserError(f"{out} holds another pack ({'; '.join(changed)}): restore them, or choose another folder")


# what the workers do


# what this process does


class Packer:
    """Writes the shards of a folder one after the other, each whole or not at all.

    Beside every finished shard lie two hidden files until all are there: its part of the index, and of the account of
    images left out. They are written first, so that a shard with its name has both.

    Args:
        config: the settings.
        out: folder of the shards, to be opened for this process alone before anything is written.
        images: the source.

    Raises:
        UserError: when labels are asked for and an image has none.
    """

    def __init__(self, config: PackConfig, out: Path, images: Images) -> None:
        self.config, self.out, self.images = config, out, images
        self.count = -(-len(images) // config.shard_images)
        self.labels, self.classes = self._labels()
        self.left_out = 0

    def run(self) -> PackResult:
        """Write what is missing, then the index."""
        keys = Keys(self.images, self.labels, self.classes)
        workers = cores_here() if self.config.workers is None else self.config.workers
        done = [number for number in range(self.count) if self._is_done(number)]
        todo = sorted(set(range(self.count)) - set(done))
        self.left_out = sum(len(self._skipped(number)) for number in done)
        packing = Packing(self.images, self.config.short_side, self.config.quality)
        order = [chunk for number in todo for chunk in chunks(self._indices(number), CHUNK)]
        with writing(self.out):
            self._remove_leftovers()
            with ExitStack() as stack:
                stop = stack.enter_context(StopRequest().listening())
                loader = stack.enter_context(batches(packing, order, min(workers, len(order)), pin=False))
                advance = progress_bar(stack, "packing images", len(self.images))
                for number in todo:
                    images = islice(loader, len(chunks(self._indices(number), CHUNK)))
                    self._write(number, chain.from_iterable(images), keys, stop, advance)
            return self._finish()

    def mend(self, left_out: int) -> None:
        """Write the index of a finished pack again if it is damaged or gone, and tell when the account of the images
        left out is.

        Raises:
            UserError: when a shard is missing or damaged, too.
        """
        account = self.out / "skipped.jsonl"
        lines = account.read_bytes().splitlines(keepends=True) if account.is_file() else []
        if sum(b'"why": ' in line and line.endswith(b"\n") for line in lines) < left_out:
            logger.warning("%s no longer names all %d images left out: pack again to see them", account, left_out)
        try:
            ShardIndex.load(self.out / INDEX_NAME)
        except INDEX_ERRORS as error:
            logger.warning("%s cannot be used (%s): it is made anew from the shards", self.out / INDEX_NAME, error)
            shards = [self._shard(number) for number in range(self.count)]
            index = ShardIndex.joined([scan_shard(shard, shard.name) for shard in shards])
            undated = [replace(shard, time=0) for shard in index.shards]  # it travels with them
            with writing(self.out):
                replace(index, shards=undated).save(self.out / INDEX_NAME)

    def _is_done(self, number: int) -> bool:
        """Whether a shard is there with whole parts."""
        try:
            self._skipped(number)
            [shard] = ShardIndex.load(self._part(number, "index")).shards
            return self._shard(number).stat().st_size == shard.size
        except INDEX_ERRORS:
            return False

    def remove_parts(self) -> None:
        """Remove what a finished pack no longer needs."""
        with writing(self.out):
            for number in range(self.count):
                for kind in ("index", "skipped"):
                    self._part(number, kind).unlink(missing_ok=True)

    def _labels(self) -> tuple[np.ndarray | None, list[str]]:
        if self.config.labels == "no":
            return None, []
        try:
            return self.images.labels()
        except UserError:
            if self.config.labels == "yes":
                raise
            return None, []

    def _shard(self, number: int) -> Path:
        return self.out / f"shard-{number:06d}.tar"

    def _part(self, number: int, kind: str) -> Path:
        return self.out / PART.format(number=number, kind=kind)

    def _indices(self, number: int) -> np.ndarray:
        start = number * self.config.shard_images
        return np.arange(start, min(start + self.config.shard_images, len(self.images)))

    def _skipped(self, number: int) -> list[str]:
        *lines, checksum = self._part(number, "skipped").read_text().splitlines()
        if checksum != checksum_of(lines):
            raise ValueError("damaged")
        return lines

    def _remove_leftovers(self) -> None:
        for path in self.out.glob(".*.tmp"):  # of a process killed while it was writing
            path.unlink()

    def _write(
        self,
        number: int,
        images: Iterator[Packed],
        keys: "Keys",
        stop: StopRequest,
        advance: Callable[[int], None],
    ) -> None:
        """One shard with its parts.

        Raises:
            Interrupted: when asked to stop.
            TrainingError: when too many images are left out.
        """
        shard, builder, skipped = self._shard(number), IndexBuilder(), list[str]()
        with whole_file(shard) as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                for index, image in zip(self._indices(number).tolist(), images, strict=True):
                    if image.why:
                        skipped.append(json.dumps({"file": self.images.name(index), "why": image.why}))
                        self._check_share(skipped)
                    else:
                        label = None if self.labels is None else str(self.labels[index])
                        add_sample(tar, builder, keys[index], image, label)
                    advance(index + 1)
                    if stop.agreed():
                        raise Interrupted(
                            f"stopped by {signal.Signals(stop.signal_number).name} after {number} of {self.count} "
                            "shards: the same command continues from there",
                            stop.signal_number,
                        )
            file.flush()
            builder.finish(file, shard.name, 0).save(self._part(number, "index"))
            part = [*skipped, checksum_of(skipped)]
            write_whole(self._part(number, "skipped"), "".join(f"{line}\n" for line in part).encode())
        self.left_out += len(skipped)

    def _check_share(self, skipped: list[str]) -> None:
        count, limit = self.left_out + len(skipped), self.config.max_unreadable
        if count / len(self.images) > limit:
            last = json.loads(skipped[-1])
            raise TrainingError(
                f"{count} of {len(self.images)} images in {self.images.root} are unreadable, last {last['file']} "
                f"({last['why']}): mend them, or raise --max-unreadable above {limit:g}"
            )

    def _finish(self) -> PackResult:
        index = ShardIndex.joined([ShardIndex.load(self._part(number, "index")) for number in range(self.count)])
        if len(index) == 0:
            raise UserError(f"no image in {self.images.root} can be read: pass a folder of whole images")
        skipped = [json.dumps({"file": name, "ignored": "not an image's extension"}) for name in self.images.ignored]
        skipped += [line for number in range(self.count) for line in self._skipped(number)]
        size = sum(shard.size for shard in index.shards)
        result = PackResult(str(self.out), len(index), self.count, size / 1e6, self.left_out, len(self.classes))
        if skipped:
            write_whole(self.out / "skipped.jsonl", "".join(f"{line}\n" for line in skipped).encode())
        index.save(self.out / INDEX_NAME)
        write_whole(self.out / "result.json", json.dumps(asdict(result), indent=2).encode())
        return result


def checksum_of(lines: Sequence[str]) -> str:
    """CRC-32 of lines."""
    return f"{zlib.crc32(json.dumps(list(lines)).encode()):08x}"

"""Account of files that are passed over: each told once, counted, and too many of them stop a run."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from mgd_ssl.data.images import Images, Noted, Unreadable, read_regular
from mgd_ssl.errors import TrainingError, UserError
from mgd_ssl.files import Appended, write_whole, writing
from mgd_ssl.run.log import logger
from mgd_ssl.run.runtime import on_rank_zero
from moco.dist import rank, sum_over_ranks, world_size

LONGEST = 2**30  # bytes of an account
TOLD = 5  # single files named in the log; the rest are in the file


class SkippedFiles:
    """Unreadable images of a run, in `skipped_files.jsonl` ({"file": ..., "why": ...} a line).

    Args:
        path: of that file; what an earlier part of the run wrote there is known.
        images: the images of the run.
        max_share: of unreadable images among all, above which the run stops.
        setting: the user's name of `max_share`, in which it is told.
    """

    def __init__(self, path: Path, images: Images, max_share: float, setting: str = "data.max_unreadable") -> None:
        self.path, self.images, self.max_share, self.setting = path, images, max_share, setting
        self.known: set[str] = set()
        self.fresh: dict[str, str] = {}  # seen by this rank since the ranks last compared notes
        self.counts = [0, 0]  # by this rank: images composited, images decoded
        self.told_composited = False
        if path.exists():
            self.known = self._read()
        elif rank() == 0 and images.ignored:
            logger.warning(
                "%d files without an image's extension are ignored (first: %s), listed in %s",
                len(images.ignored), images.ignored[0], path,
            )  # fmt: skip
            self._append(self._ignored())

    def note(self, unreadable: Sequence[Unreadable]) -> None:
        """Remember files seen by this rank."""
        self.counts = added(self.counts, unreadable)
        self.fresh |= {name: why for name, why in unreadable if name not in self.known}

    def share(self) -> None:
        """Compare notes over the ranks, report what is new, and stop if it is too much.

        Raises:
            TrainingError: on all ranks, when the share of unreadable images is too large, or the account cannot be
                written.
        """
        fresh, *counts = sum_over_ranks(torch.tensor([len(self.fresh), *self.counts])).tolist()
        if not self.told_composited and (line := composited(self.images, counts)):
            self.told_composited = True
            if rank() == 0:
                logger.warning("%s", line)
        if fresh == 0:
            return
        new = {name: why for name, why in over_ranks(self.fresh).items() if name not in self.known}
        self.fresh = {}
        if rank() == 0:
            for name, why in list(new.items())[: max(0, TOLD - len(self.known))]:
                logger.warning("unreadable image %s (%s), another one takes its place", name, why)
        on_rank_zero(lambda: self._append([{"file": name, "why": why} for name, why in new.items()]))
        self.known |= new.keys()
        share = len(self.known) / len(self.images)
        if share > self.max_share:
            raise TrainingError(
                f"{len(self.known)} of {len(self.images)} images ({share:.1%}) are unreadable, more than "
                f"{self.setting} = {self.max_share:g}: mend the files listed in {self.path}, or raise the limit"
            )

    def _read(self) -> set[str]:
        """Files an earlier part of the run told of; lines that are damaged, or cut off by a kill, are dropped."""
        try:
            content = read_regular(self.path, LONGEST)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}): remove it, and it is made anew") from error
        *lines, rest = content.split(b"\n")
        entries = [entry for entry in map(_entry, lines) if entry is not None]
        ignored = [entry["file"] for entry in entries if "ignored" in entry]
        damaged = len(lines) - len(entries)
        if rank() == 0 and (damaged or rest or not content or ignored != self.images.ignored):
            if damaged or not content:
                logger.warning(
                    "%s is damaged (%s): the files it no longer names are noted again when they are read again",
                    self.path, f"{damaged} of {len(lines)} lines" if content else "it is empty",
                )  # fmt: skip
            self._write(self._ignored() + [entry for entry in entries if "why" in entry])
        return {entry["file"] for entry in entries if "why" in entry}

    def _ignored(self) -> list[dict[str, str]]:
        return [{"file": name, "ignored": "not an image's extension"} for name in self.images.ignored]

    def _write(self, entries: list[dict[str, str]]) -> None:
        with writing(self.path):
            if entries:
                write_whole(self.path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
            else:
                self.path.unlink()

    def _append(self, entries: list[dict[str, str]]) -> None:
        with writing(self.path):
            file = Appended(self.path)
            try:
                file.append("".join(json.dumps(entry) + "\n" for entry in entries).encode())
            finally:
                file.close()


def _entry(line: bytes) -> dict[str, str] | None:
    """A line of an account, None when it is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values())
    return entry if whole and entry.keys() in ({"file", "why"}, {"file", "ignored"}) else None


def added(counts: Sequence[int], files: Sequence[Unreadable]) -> list[int]:
    """Numbers of images composited, and decoded, and with them those while these files were noted."""
    more = (files.composited, files.decoded) if isinstance(files, Noted) else (0, 0)
    return [counts[0] + more[0], counts[1] + more[1]]


def composited(images: Images, counts: Sequence[int]) -> str:
    """One line that tells how many images (the first count) of those decoded (the second) have transparent parts, and
    what was done with them; empty when there is none."""
    some, of = counts
    if some == 0:
        return ""
    return (
        f"{some} of the first {of} images read from {images.root} have transparent parts: they are composited on "
        f"{images.decoding.background} (the setting background)"
    )


def over_ranks(mine: dict[str, str]) -> dict[str, str]:
    """The files noted by any rank, and why, equal on all of them."""
    parts = [mine]
    if world_size() > 1:
        parts = [{}] * world_size()
        dist.all_gather_object(parts, mine)
    return {name: why for part in parts for name, why in part.items()}

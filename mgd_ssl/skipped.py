"""Account of files that are passed over: each told once, counted, and too many of them stop a run."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from mgd_ssl.errors import TrainingError
from mgd_ssl.files import Appended, writing
from mgd_ssl.images import Images, Unreadable
from mgd_ssl.log import logger
from mgd_ssl.runtime import on_rank_zero
from moco.dist import rank, sum_over_ranks, world_size

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
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            if lines and not lines[-1].endswith("\n"):  # cut off when an earlier part of the run was killed
                lines.pop()
                if rank() == 0:
                    os.truncate(path, sum(map(len, lines)))  # ASCII, so characters are bytes
            entries = [json.loads(line) for line in lines]
            self.known = {entry["file"] for entry in entries if "why" in entry}
        elif rank() == 0 and images.ignored:
            logger.warning(
                "%d files without an image's extension are ignored (first: %s), listed in %s",
                len(images.ignored), images.ignored[0], path,
            )  # fmt: skip
            self._append([{"file": name, "ignored": "not an image's extension"} for name in images.ignored])

    def note(self, unreadable: Sequence[Unreadable]) -> None:
        """Remember files seen by this rank."""
        self.fresh |= {name: why for name, why in unreadable if name not in self.known}

    def share(self) -> None:
        """Compare notes over the ranks, report what is new, and stop if it is too much.

        Raises:
            TrainingError: on all ranks, when the share of unreadable images is too large, or the account cannot be
                written.
        """
        if sum_over_ranks(torch.tensor(len(self.fresh))) == 0:
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

    def _append(self, entries: list[dict[str, str]]) -> None:
        with writing(self.path):
            file = Appended(self.path)
            try:
                file.append("".join(json.dumps(entry) + "\n" for entry in entries).encode())
            finally:
                file.close()


def over_ranks(mine: dict[str, str]) -> dict[str, str]:
    """The files noted by any rank, and why, equal on all of them."""
    parts = [mine]
    if world_size() > 1:
        parts = [{}] * world_size()
        dist.all_gather_object(parts, mine)
    return {name: why for part in parts for name, why in part.items()}

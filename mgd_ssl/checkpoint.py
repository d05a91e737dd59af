"""Checkpoints of a run: plain dictionaries, written whole or not at all, found by the run itself."""

import io
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mgd_ssl.errors import UserError
from mgd_ssl.files import write_whole, writing
from mgd_ssl.weights import read_checkpoint

logger = logging.getLogger("mgd_ssl")
PATTERN = re.compile(r"step_(\d+)\.pt")


def serialised(state: dict[str, Any]) -> bytes:
    """A dictionary of tensors and builtins as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


class Checkpoints:
    """The folder of a run's checkpoints, `step_<number>.pt`.

    Args:
        folder: where they are, made when the first is saved.
        keep: how many of the newest survive.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """All of them, newest first."""
        if not self.folder.is_dir():
            return []
        steps = {path: int(m[1]) for path in self.folder.iterdir() if (m := PATTERN.fullmatch(path.name))}
        return sorted(steps, key=steps.__getitem__, reverse=True)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, then remove those beyond `keep`, never before the new one is whole.

        Raises:
            DiskError: when it cannot be written, a full disk for instance; those before stay.
        """
        path = self.folder / f"step_{step:08d}.pt"
        with writing(path, kept=self._kept):
            self.folder.mkdir(exist_ok=True)  # not its parents: a run whose folder was moved has no second one
            self._remove_leftovers()
            write_whole(path, serialised(state))
            for old in self.paths()[self.keep :]:
                old.unlink()
        return path

    def _kept(self) -> str:
        before = self.paths()
        if not self.folder.parent.is_dir():
            return ""  # they are wherever it is
        return f" and the one before, {before[0]}, is kept" if before else " and there is none before it"

    def newest_whole(self, warn: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that can be read, None when there is none at all.

        Raises:
            UserError: when there are checkpoints but none is whole.
        """
        paths = self.paths()
        for path in paths:
            try:
                read_checkpoint(path)
                return path
            except UserError as error:
                warn(f"{error}; going back to the checkpoint before it")
        if paths:
            raise UserError(f"no checkpoint in {self.folder} is whole: restore one, or start a new --out")
        return None

    def _remove_leftovers(self) -> None:
        for path in self.folder.glob(".step_*.tmp"):  # of a process killed while it was writing
            path.unlink(missing_ok=True)


def find_weights(path: Path) -> Path:
    """The file with the weights to evaluate: `path` itself, or of a run's folder `encoder.pt`, which a finished run
    has, else its newest whole checkpoint.

    Args:
        path: a file, or the folder of a run; checkpoints that are passed over are told by a warning.

    Raises:
        UserError: when there is nothing there, or the folder holds no weights.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} does not exist: pass a checkpoint or the folder of a run")
    if (path / "encoder.pt").is_file():
        return path / "encoder.pt"
    newest = Checkpoints(path / "checkpoints").newest_whole(logger.warning)
    if newest is None:
        raise UserError(
            f"{path} holds neither encoder.pt nor checkpoints/step_*.pt: "
            "pass the folder of a run that has saved a checkpoint, or a file"
        )
    return newest

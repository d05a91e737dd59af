"""Checkpoints of a run: plain dictionaries, written whole or not at all, found by the run itself."""

import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mgd_ssl.errors import TrainingError, UserError
from mgd_ssl.leftovers import claimed, sweep
from mgd_ssl.weights import read_checkpoint

logger = logging.getLogger("mgd_ssl")
PATTERN = re.compile(r"step_(\d+)\.pt")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write in the block; `path` holds its old content or, after the block, all of the new, even when killed.

    Raises:
        OSError: as the file system says; nothing is left behind, neither after another error in the block.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    sweep(path.parent, of=path.name)
    try:
        with claimed(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name survives a power cut too
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that `path` holds either its old content or all of the new, even when killed.

    Raises:
        OSError: as the file system says; nothing is left behind.
    """
    with whole_file(path) as file:
        file.write(content)


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
            TrainingError: when it cannot be written, a full disk for instance; those before stay.
        """
        path = self.folder / f"step_{step:08d}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
            write_whole(path, serialised(state))
        except OSError as error:
            before = self.paths()
            kept = f"the one before, {before[0]}, is kept" if before else "there is none before it"
            raise TrainingError(
                f"the checkpoint {path} cannot be written ({error.strerror}) and {kept}: "
                "make room or mend the folder, then run the same command again"
            ) from error
        for old in self.paths()[self.keep :]:
            old.unlink()
        return path

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

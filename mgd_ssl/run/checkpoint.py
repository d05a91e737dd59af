"""Checkpoints of a run: plain dictionaries, written whole or not at all, found by the run itself."""

import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mgd_ssl.errors import UserError
from mgd_ssl.files import write_whole, writing
from mgd_ssl.leftovers import sweep
from mgd_ssl.networks.weights import read_checkpoint

logger = logging.getLogger("mgd_ssl")
FORMAT = 1  # of the states that this version writes and reads
PATTERN = re.compile(r"step_(\d+)\.pt")


def serialised(state: dict[str, Any]) -> bytes:
    """A dictionary of tensors and builtins as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


class OtherFormatError(UserError):
    """A state that is whole but of another version: those before it are no better."""


class Checkpoints:
    """The folder of a run's checkpoints, `step_<number>.pt`.

    Args:
        folder: where they are, made when the first is saved.
        keep: how many of the newest survive.
        counter: key of a state under which the number in its file's name stands.
    """

    def __init__(self, folder: Path, keep: int = 2, counter: str = "step") -> None:
        self.folder, self.keep, self.counter = folder, keep, counter
        self._passed_over: set[Path] = set()  # damaged ones
        self._known: tuple[Path, dict[str, Any]] | None = None  # what was read last, until it is asked for

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
            sweep(self.folder)
            write_whole(path, serialised(state))
            for old in self._outlived(path):
                old.unlink()
        return path

    def _kept(self) -> str:
        before = self.paths()
        if not self.folder.parent.is_dir():
            return ""  # they are wherever it is
        return f" and the one before, {before[0]}, is kept" if before else " and there is none before it"

    def _outlived(self, newest: Path) -> list[Path]:
        """Those before `newest` that need not stay; damaged ones do not count among those to keep."""
        self._passed_over.discard(newest)
        older = [path for path in self.paths() if number(path) <= number(newest)]
        whole = [path for path in older if path not in self._passed_over]
        return [*whole[self.keep :], *(path for path in older if path in self._passed_over)]

    def kept(self) -> str:
        """What remains when training stops: `the last checkpoint, PATH, is kept`, or that there is none."""
        paths = self.paths()
        return f"the last checkpoint, {paths[0]}, is kept" if paths else "there is no checkpoint yet"

    def newest_whole(self, warn: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that is what was written, None when there is none at all.

        Raises:
            UserError: when there are checkpoints but none is whole, or another version wrote them.
        """
        paths = self.paths()
        for path in paths:
            try:
                self._known = path, self._checked(path)
                return path
            except OtherFormatError:
                raise
            except UserError as error:
                self._passed_over.add(path)
                warn(f"{error}; going back to the checkpoint before it")
        if paths:
            raise UserError(f"no checkpoint in {self.folder} is whole: restore one, or start a new --out")
        return None

    def read(self, path: Path) -> dict[str, Any]:
        """The state in a checkpoint; what `newest_whole` has just read is not read again.

        Raises:
            UserError: when it is damaged.
        """
        known, self._known = self._known, None
        state = known[1] if known is not None and known[0] == path else self._checked(path)
        if not isinstance(state.get("metrics_bytes"), int):
            raise UserError(f"{path} is no state of a run (no metrics_bytes): restore it, or start a new --out")
        return state

    def _checked(self, path: Path) -> dict[str, Any]:
        """A state that is whole, of this format and of the step its name says."""
        state = read_checkpoint(path)
        found, step = state.get("format"), state.get(self.counter)
        if isinstance(found, int) and found != FORMAT:
            raise OtherFormatError(
                f"{path} has format {found}, and this version reads {FORMAT}: use the version of mgd_ssl that wrote it"
            )
        if found != FORMAT or not isinstance(step, int):
            raise UserError(f"{path} is no checkpoint of a run (no format or no {self.counter} in it)")
        if step != number(path):
            raise UserError(f"{path} holds step {step} and not that of its name")
        return state


def number(path: Path) -> int:
    """The step in the name of a checkpoint."""
    return int(path.stem.removeprefix("step_"))


@contextmanager
def taken_over(path: Path) -> Iterator[None]:
    """A block that takes over the state of a file; that it does not fit becomes one sentence.

    Raises:
        UserError: for a state that lacks something or has another shape.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UserError(f"{path} does not fit this run ({why}): restore it, or start a new --out") from error


def find_weights(path: Path) -> Path:
    """The file with the weights to evaluate: `path` itself, or of a run's folder `encoder.pt`, which a finished run
    has, else its newest whole checkpoint.

    Args:
        path: a file, or the folder of a run; checkpoints that are passed over are told by a warning.

    Raises:
        UserError: when there is nothing there, or the folder holds no weights.
    """
    if os.path.isfile(path):  # not Path.is_file, which raises for some names
        return path
    if not os.path.isdir(path):
        raise UserError(f"{path} does not exist: pass a checkpoint or the folder of a run")
    if (path / "encoder.pt").is_file():
        return path / "encoder.pt"
    newest = Checkpoints(path / "checkpoints").newest_whole(logger.warning)
    if newest is None:
        raise UserError(
            f"{path} holds neither encoder.pt nor checkpoints/step_*.pt: "
            "pass the folder of a run that has saved a checkpoint, or a file"
        )
    if (path / "result.json").is_file():
        logger.warning("encoder.pt of the finished run %s is missing, so %s is taken", path, newest)
    return newest

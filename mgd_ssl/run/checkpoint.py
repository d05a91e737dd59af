"""Checkpoints of a run: plain dictionaries, written whole or not at all, found by the run itself."""

import argparse
import io
import logging
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mgd_ssl.errors import UserError
from mgd_ssl.files import sweep, write_whole, writing
from mgd_ssl.printable import shown
from mgd_ssl.run.zip_records import CompressedError, check_records

logger = logging.getLogger("mgd_ssl")
FORMAT = 2  # of the states that this version writes and reads
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


MAGICS = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # first bytes of what torch.save writes: now, and before torch 1.6


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint file as a dictionary on the CPU, without running any code it may carry.

    Raises:
        UserError: when the file is missing, truncated or damaged (its checksums say so), no checkpoint, or needs more
            than tensors and builtins.
    """
    return parsed(read_torch_file(path), path)


def read_torch_file(path: Path) -> bytes:
    """The bytes of a file torch.save wrote, held against their checksums; read once, whatever is done with them.

    Raises:
        UserError: when there is no such file, it cannot be read, is something else, or damaged.
    """
    if not os.path.isfile(path):  # not Path.is_file, which raises for some names
        raise UserError(f"{path} is not a file: pass the path of a checkpoint")
    try:
        with path.open("rb") as file:
            head = file.read(4)
            if not any(magic.startswith(head) for magic in MAGICS):
                raise UserError(f"{path} is no torch checkpoint: pass a file written by torch.save")
            file.seek(0)  # rather than joined, which would copy the whole file
            content = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    try:
        check_records(content)
    except CompressedError as error:
        raise UserError(
            f"{path} holds compressed records (first: {shown(str(error))}), which torch.save does not write: load it "
            "where you trust it, and save it again with torch.save"
        ) from error
    except ValueError as error:
        raise damaged(path) from error
    return content


def parsed(content: bytes, path: Path) -> dict[str, Any]:
    """The dictionary in the bytes of a file, whose path is named in errors.

    Raises:
        UserError: as `read_checkpoint` says.
    """
    try:
        # DINO and MAE save their arguments as a Namespace, which holds values and runs nothing
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of torch, about what odd files hold
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the reader raise anything: IndexError, struct.error, OSError, ...
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(
                f"{path} holds Python objects besides tensors, which could run code when they are loaded, so it is "
                "refused: save its state dict alone with torch.save(model.state_dict(), ...) where you trust it"
            ) from error
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript archive: save the state dict of its network") from error
        raise damaged(path) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a dictionary of weights: save a state dict")
    return checkpoint


def damaged(path: Path) -> UserError:
    """What to tell of a file that is not what was written."""
    if path.name == "encoder.pt" and path.with_name("config.json").is_file():
        return UserError(f"{path} is truncated or damaged: run the command of its run again, which makes it anew")
    return UserError(f"{path} is truncated or damaged: copy or download it again")

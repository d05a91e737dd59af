"""`result.json` of what is finished: sealed by a checksum, with the hash of the weights that lie beside it.

Both files can be damaged, emptied or lost years after; then they are made anew rather than believed.
"""

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mgd_ssl.errors import UserError
from mgd_ssl.files import ELSEWHERE, read_json, sha256_of, write_whole, writing
from mgd_ssl.run.environment import environment

NAME = "result.json"
HASH, SEAL = "weights_sha256", "checksum"  # keys that a sealed result has besides its own
LATER = frozenset({"teacher"})  # keys that results of earlier versions have not


def write_result(folder: Path, content: dict[str, Any], name: str, weights: bytes) -> None:
    """Write a file of weights, then the result that vouches for it: where there is a result, there are its weights.

    Raises:
        OSError: as the file system says.
    """
    write_whole(folder / name, weights)
    vouched = content | {HASH: hashlib.sha256(weights).hexdigest()}
    write_whole(folder / NAME, json.dumps(vouched | {SEAL: seal(vouched)}, indent=2).encode())


def read_result(folder: Path, keys: Sequence[str], name: str) -> dict[str, Any] | None:
    """The result in a folder without its seal, None when there is none.

    Args:
        folder: of what is finished.
        keys: of the result.
        name: of the file with the weights.

    Raises:
        UserError: when the result or the weights are not what was written, or the weights are missing.
    """
    path, weights = folder / NAME, folder / name
    if not path.exists():
        return None
    content = read_json(path)
    found, wanted = set(content) - LATER, set(keys) - LATER
    sealed = found == {*wanted, HASH, SEAL}
    if not sealed and found != wanted:  # before there were seals, a result had its own keys alone
        raise UserError(f"{path} is damaged (other keys than were written)")
    if sealed and content.pop(SEAL) != seal(content):
        raise UserError(f"{path} is damaged (it does not match its checksum)")
    if not weights.is_file():
        raise UserError(f"{weights} is missing")
    try:
        from mgd_ssl.run.checkpoint import read_checkpoint  # loads torch, which a result alone does not need

        whole = sha256_of(weights) == content.pop(HASH) if sealed else bool(read_checkpoint(weights))
    except OSError as error:
        raise UserError(f"{weights} cannot be read ({error.strerror})") from error
    if not whole:
        raise UserError(f"{weights} is damaged (it is not the file that {path.name} tells of)")
    return content


def read_plain(folder: Path) -> dict[str, Any] | None:
    """A result that vouches for no weights, None when there is none.

    Raises:
        UserError: when it is damaged.
    """
    return read_json(folder / NAME) if (folder / NAME).exists() else None


def damage(folder: Path, keys: Sequence[str], name: str) -> str | None:
    """What is wrong with a result or its weights, None when nothing is, or there is no result."""
    try:
        read_result(folder, keys, name)
    except UserError as error:
        return str(error)
    return None


def seal(content: dict[str, Any]) -> str:
    """Checksum of what a dictionary says, however it is written."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one checkpoint."""

    kind: str  # "linear" or "knn"
    name: str  # short and file-safe, for instance the protocol's name
    protocol: str  # all that a number depends on, in one line
    checkpoint: str  # file the backbone came from; random:ARCH:SEED for an untrained one
    arch: str
    values: dict[str, list[float]]  # "top1", "top5" in percent, one value a seed
    details: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=environment)

    @property
    def untrained(self) -> bool:
        """Whether it is of an encoder with random weights."""
        return self.checkpoint.startswith("random:")

    def mean(self, metric: str) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values[metric])

    def deviation(self, metric: str) -> float | None:
        """Standard deviation over seeds, None for one."""
        values = self.values[metric]
        return statistics.stdev(values) if len(values) > 1 else None

    def save(self, folder: Path) -> Path:
        """Write `evaluation_<kind>_<name>.json`, whole or not at all; returns where.

        Raises:
            DiskError: when the folder cannot be written.
        """
        path = folder / f"evaluation_{self.kind}_{self.name}.json"
        with writing(path, ELSEWHERE):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"format": 1, **asdict(self)}, indent=2).encode())
        return path

    def check(self) -> None:
        """Raise TypeError unless names are text and values are lists of numbers, one at least."""
        if not all(isinstance(word, str) for word in (self.kind, self.name, self.protocol, self.checkpoint, self.arch)):
            raise TypeError("a name is no text")
        lists = self.values.values()
        if not all(isinstance(found, list) and found for found in lists):
            raise TypeError("values are no lists")
        if not all(isinstance(value, int | float) and abs(value) < 1e300 for found in lists for value in found):
            raise TypeError("a value is no number")

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            UserError: when the file is damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content.pop("format")
            evaluation = cls(**content)
            evaluation.check()
            return evaluation
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is no evaluation or is damaged: run the evaluation again") from error

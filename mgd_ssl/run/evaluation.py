"""The result of an evaluation as a file that a report can read: never a number without its protocol."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mgd_ssl.errors import UserError
from mgd_ssl.files import ELSEWHERE, write_whole, writing
from mgd_ssl.run.environment import environment


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

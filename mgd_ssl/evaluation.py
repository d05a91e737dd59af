"""The result of an evaluation as a file that a report can read: never a number without its protocol."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mgd_ssl.checkpoint import write_whole
from mgd_ssl.environment import environment
from mgd_ssl.errors import UserError


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
            UserError: when the folder cannot be written.
        """
        path = folder / f"evaluation_{self.kind}_{self.name}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"format": 1, **asdict(self)}, indent=2).encode())
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): choose another --out") from error
        return path

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            UserError: when the file is damaged.
        """
        try:
            content = json.loads(path.read_text())
            content.pop("format")
            return cls(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no evaluation or is damaged: run the evaluation again") from error

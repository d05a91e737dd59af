"""Short trainings, and what was logged of them."""

from pathlib import Path
from typing import Any

from tests.runs import rows, tiny


def train_rows(run: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run) if row["kind"] == "train"]


ONE_EPOCH = {"optim": {"epochs": 1}, "runtime": {"log_every": 1}}


def one_epoch(images: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Settings of three steps that are all logged."""
    merged = dict(changes)
    for group, values in ONE_EPOCH.items():
        merged[group] = {**values, **changes.get(group, {})}
    return tiny(images, out, **merged)

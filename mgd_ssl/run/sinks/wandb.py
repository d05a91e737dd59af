"""Weights & Biases; `WANDB_MODE=offline` keeps what it gets in the run's folder until `wandb sync` (docs.wandb.ai)."""

import os
from collections.abc import Mapping
from typing import Any

import wandb

from mgd_ssl.run.sinks.sink import PROJECT, Opening, numbers_of


class Wandb:
    """The run at Weights & Biases, under the same id from start to end.

    The step is a number among the others: wandb's own may not go back, as it does on the way from a checkpoint.

    Args:
        opening: folder, settings, and the id that the run has there already.
    """

    def __init__(self, opening: Opening) -> None:
        self._run = wandb.init(
            id=opening.known, resume="allow", project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", opening.folder.resolve().name), config=dict(opening.settings),
            dir=os.environ.get("WANDB_DIR", str(opening.folder)),
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")
        self.known = str(self._run.id)

    def add(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row at its step."""
        self._run.log({"step": row["step"], **numbers_of(row)})

    def close(self) -> None:
        """Wait until all is written."""
        self._run.finish()


def open_sink(opening: Opening) -> Wandb:
    """The sink of a run."""
    return Wandb(opening)

"""Trackio, which keeps runs on this host or in the Space `TRACKIO_SPACE_ID` (huggingface.co/docs/trackio)."""

import os
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import trackio

from mgd_ssl.run.sinks.sink import PROJECT, Opening, numbers_of


class Trackio:
    """The run at Trackio, which knows it by its name: that of the folder, and a few letters as folders share theirs.

    Args:
        opening: folder, settings, and the name that the run has there already.
    """

    def __init__(self, opening: Opening) -> None:
        self.known = opening.known or f"{opening.folder.resolve().name}-{uuid4().hex[:6]}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = trackio.init(
            project=project, name=self.known, config=dict(opening.settings), resume="allow", embed=False
        )

    def add(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row at its step."""
        self._run.log(numbers_of(row), step=row["step"])

    def close(self) -> None:
        """Wait until all is written."""
        self._run.finish()


def open_sink(opening: Opening) -> Trackio:
    """The sink of a run."""
    return Trackio(opening)

"""What a sink is, and how those of a run are opened: none of them ever stops a training."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from mgd_ssl.errors import UserError
from mgd_ssl.files import write_whole
from mgd_ssl.setting_keys import flattened

logger = logging.getLogger("mgd_ssl")

SINKS = ("wandb", "mlflow", "trackio")  # each a module of this folder and a package of this name
PROJECT = "mgd_ssl"  # where the environment names no other
KNOWN = "sinks.json"  # in a run's folder: its name with every service, so that a resume goes on with it
SAID = 300  # characters of what a service says


class Sink(Protocol):
    """Takes the rows of metrics.jsonl; `EventFile` is one too."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Take the numbers of a row."""
        ...

    def close(self) -> None:
        """Say that no more will come for now."""
        ...


@dataclass(frozen=True)
class Opening:
    """What a sink opens with."""

    folder: Path  # of the run
    settings: Mapping[str, Any]  # of the run, flat
    known: str | None  # by what name the service knows the run already


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of metrics.jsonl by their tags, `<kind>/<name>`."""
    return {
        f"{row['kind']}/{name}": value
        for name, value in row.items()
        if name not in ("kind", "step") and isinstance(value, int | float)
    }


def check_installed(names: Sequence[str]) -> None:
    """Raise UserError when the package of a sink is missing."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"--log {name} needs {name}: pip install 'mgd_ssl[{name}]', or leave it out")


def open_sinks(names: Sequence[str], folder: Path) -> list["Guarded"]:
    """Open sinks for the run in a folder, each where it was before.

    Args:
        names: of `SINKS`.
        folder: with the run's `config.json`.

    Raises:
        UserError: when a package is missing.
    """
    check_installed(names)
    path = folder / KNOWN
    known = _read(path)
    settings = flattened(_read(folder / "config.json").get("config", {}))
    opened = []
    for name in names:
        guarded = Guarded(name, Opening(folder, settings, known.get(name)))
        if guarded.known and known.get(name) != guarded.known:
            known[name] = guarded.known
            write_whole(path, json.dumps(known, indent=2).encode())
        opened.append(guarded)
    return opened


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


class Guarded:
    """A sink that is left alone after its first failure, of which a warning tells.

    Args:
        name: of the sink.
        opening: what it opens with.
    """

    def __init__(self, name: str, opening: Opening) -> None:
        self.name, self.known = name, opening.known
        self._sink: Any = None
        self._try(lambda: self._open(opening))

    def add(self, row: Mapping[str, Any]) -> None:
        """Pass a row on."""
        if self._sink is not None and numbers_of(row):
            self._try(lambda: self._sink.add(row))

    def close(self) -> None:
        """Close it."""
        if self._sink is not None:
            self._try(self._sink.close)

    def _open(self, opening: Opening) -> None:
        self._sink = import_module(f"{__package__}.{self.name}").open_sink(opening)
        self.known = self._sink.known

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever a service or its package raises
            self._sink = None
            said = re.sub(r"\s+", " ", str(error)).strip()[:SAID]
            logger.warning(
                "--log %s does not take this run's numbers (%s: %s): the run goes on without it, and all of them are "
                "in metrics.jsonl", self.name, type(error).__name__, said,
            )  # fmt: skip

"""Scalars for TensorBoard: what `torch.utils.tensorboard.SummaryWriter` writes, but at once and in this thread.

Its thread would meet a full disk on its own, where nobody can be told, and its file is named by the clock alone: after
a clock was set back TensorBoard would never look at it.
"""

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from mgd_ssl.files import Appended
from mgd_ssl.run.sinks.sink import numbers_of

NAME = re.compile(r"events\.out\.tfevents\.(\d+)\..*")


class EventFile:
    """The newest event file of a run.

    TensorBoard forgets what earlier files say of the step the run continues from and of later ones.

    Args:
        folder: of the event files of a run, made if need be.
        first_step: finished steps of the checkpoint the run continues from.
        rows: of metrics.jsonl for that very step, written once more.

    Raises:
        OSError: as the file system says, here and in all methods.
    """

    def __init__(self, folder: Path, first_step: int, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        folder.mkdir(exist_ok=True)
        earlier = [int(match[1]) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
        # TensorBoard reads the files in the order of their names, and looks for new ones after the newest only
        number = max([int(time.time()), *(number + 1 for number in earlier)])
        self._file = Appended(folder / f"events.out.tfevents.{number:010d}.mgd_ssl")
        self._records = RecordWriter(self)
        self._add(Event(step=first_step, file_version="brain.Event:2"))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """The numbers of a row of metrics.jsonl, as `<kind>/<name>`."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers_of(row).items()]
        if values:
            self._add(Event(step=row["step"], summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def write(self, record: bytes) -> None:
        """What `RecordWriter` calls, once for every record."""
        self._file.append(record)

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

"""What a launched command leaves beside its run, in `RUN/jobs/<time>/`: how it was submitted, its starts and its end.

The files say what Slurm cannot (which rank failed first, and why) and are there where Slurm keeps no accounting.
A job that is requeued starts anew in the same folder: every start is an attempt, counted from 0.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from mgd_ssl.errors import UserError
from mgd_ssl.files import ELSEWHERE, write_whole, writing
from mgd_ssl.run.lock import JOBS


@dataclass(frozen=True)
class Submission:
    """How the command was submitted: `submission.json`."""

    launcher: str  # "slurm" or "local"
    command: list[str]  # pretrain --config ...
    job_id: str  # Slurm's, `33_0` for an element of an array; empty for a local one
    num_tasks: int
    logs: list[str]  # files the first rank's output goes to
    submitted: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Attempt:
    """A start of the job, written by rank 0: `attempt_<n>.json`."""

    number: int
    nodes: list[str]
    log_bytes: list[int]  # length of the logs when it started
    started: float = field(default_factory=time.time)


@dataclass(frozen=True)
class End:
    """An end of an attempt that rank 0 lived to see: `end_<n>.json`."""

    number: int
    code: int  # 0 finished, 75 stopped and saved
    requeued: bool  # to be started again
    told: str = ""
    ended: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Failure:
    """The end of one rank by an error: `failure_<n>_rank<r>.json`."""

    number: int  # of the attempt
    rank: int
    node: str
    code: int
    told: str  # one sentence, or the traceback
    connection: bool  # the error is that another rank is gone
    after: list[int]  # ranks whose failure was already known
    ended: float = field(default_factory=time.time)


Record = TypeVar("Record", Submission, Attempt, End, Failure)


class Records:
    """The records of one submission.

    Args:
        folder: where they are; on the file system all processes share.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def new(cls, run: Path, suffix: str = "") -> "Records":
        """An empty folder for a submission that writes to `run`.

        Raises:
            UserError: when it cannot be made.
            DiskError: when the disk does not take it.
        """
        base = f"{datetime.now():%Y%m%d-%H%M%S}{suffix}"
        with writing(run, ELSEWHERE, at_start=True):
            for number in range(1, 100):
                folder = run / JOBS / (base if number == 1 else f"{base}_{number}")
                try:
                    folder.mkdir(parents=True)
                    return cls(folder)
                except FileExistsError:
                    continue
        raise UserError(f"{run / JOBS} is full of submissions of this second: wait for the next one")

    @classmethod
    def of_run(cls, run: Path) -> list["Records"]:
        """All of a run, the newest last."""
        found = [cls(path.parent) for path in (run / JOBS).glob("*/submission.json")]
        return sorted(found, key=lambda records: records.submission().submitted)

    def write(self, record: Submission | Attempt | End | Failure) -> None:
        """Save a record, whole or not at all.

        Raises:
            DiskError: when it cannot be written.
        """
        match record:
            case Submission():
                name = "submission"
            case Attempt(number=n):
                name = f"attempt_{n}"
            case End(number=n):
                name = f"end_{n}"
            case Failure(number=n, rank=r):
                name = f"failure_{n}_rank{r}"
        with writing(self.folder):
            write_whole(self.folder / f"{name}.json", json.dumps(asdict(record), indent=1).encode())

    def submission(self) -> Submission:
        """How it was submitted.

        Raises:
            UserError: when that file is damaged.
        """
        return _read(Submission, self.folder / "submission.json")

    def attempts(self) -> list[Attempt]:
        """All starts so far, oldest first."""
        return sorted(self._all(Attempt, "attempt_*"), key=lambda attempt: attempt.number)

    def end(self) -> End | None:
        """The end of the newest attempt, None as long as there is none (or when rank 0 was killed)."""
        number = self._newest()
        return next((end for end in self._all(End, "end_*") if end.number == number), None)

    def failures(self) -> list[Failure]:
        """Those of the newest attempt, the cause first where it can be told."""
        number = self._newest()
        found = [failure for failure in self._all(Failure, "failure_*") if failure.number == number]
        return sorted(found, key=lambda f: (f.connection, len(f.after), f.ended))

    def failed_ranks(self, number: int) -> list[int]:
        """Ranks that have told of a failure in an attempt."""
        names = (path.stem.rpartition("rank")[2] for path in self.folder.glob(f"failure_{number}_rank*.json"))
        return sorted(int(name) for name in names)

    def _newest(self) -> int:
        names = [
            path.stem.split("_")[1] for kind in ("attempt", "failure") for path in self.folder.glob(f"{kind}_*.json")
        ]
        return max(map(int, names), default=0)

    def _all(self, kind: type[Record], pattern: str) -> list[Record]:
        return [_read(kind, path) for path in sorted(self.folder.glob(f"{pattern}.json"))]


def _read(kind: type[Record], path: Path) -> Record:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return kind(**content)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: remove its folder, {path.parent.name}") from error

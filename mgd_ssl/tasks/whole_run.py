"""What every run is, whatever it learns: its folder, the way from its newest checkpoint to its end, its result."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from mgd_ssl.config import CheckpointConfig, RuntimeConfig
from mgd_ssl.data.loader import PREFETCH
from mgd_ssl.errors import UserError, once_trained
from mgd_ssl.files import writing
from mgd_ssl.networks.placing import placed
from mgd_ssl.run.checkpoint import Checkpoints, serialised
from mgd_ssl.run.folder import run_folder
from mgd_ssl.run.log import logger
from mgd_ssl.run.result import damage, read_result, write_result
from mgd_ssl.run.runtime import Runtime, on_rank_zero
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.same_run import RunSettings, SameRun
from mgd_ssl.training.loop import Pace, train
from mgd_ssl.training.task import Task
from mgd_ssl.training.update import Update

ENCODER = "encoder.pt"  # what a finished run leaves to take away


@dataclass(frozen=True)
class Result:
    """What a finished run leaves; also its `result.json`, where paths are relative, so that a run can be moved."""

    out: str  # the run's folder
    encoder: str  # file with the trained network, the usual state-dict keys
    steps: int


class Batched(Protocol):
    """Settings of an optimiser."""

    @property
    def batch_size(self) -> int: ...  # noqa: D102


class TrainingSettings(RunSettings, Protocol):
    """Settings of a run that is trained."""

    @property
    def log(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def optim(self) -> Batched: ...  # noqa: D102

    @property
    def runtime(self) -> RuntimeConfig: ...  # noqa: D102

    @property
    def checkpoint(self) -> CheckpointConfig: ...  # noqa: D102


class EpochTask(Task, Protocol):
    """A task that goes through images epoch by epoch."""

    steps_per_epoch: int
    workers: int  # data processes

    @property
    def config(self) -> TrainingSettings: ...  # noqa: D102


R = TypeVar("R", bound=Result)
T = TypeVar("T", bound=EpochTask)


@contextmanager
def folder_of(out: Path, described: dict[str, Any], same: SameRun, kind: type[R]) -> Iterator[R | None]:
    """The run's folder, opened for this run alone; yields the result when it is finished already.

    Args:
        out: the folder.
        described: what the run is, saved as its `config.json`.
        same: tells whether a run that is there is this one.
        kind: of the result.

    Raises:
        UserError: as `run_folder` does, and when a result is damaged that cannot be made anew.
    """
    with run_folder(out, described, same.check, lambda folder: finished_result(folder, keys_of_result(kind))) as found:
        yield None if found is None else kind(**found | {"out": str(out), "encoder": str(out / ENCODER)})


def to_device(runtime: Runtime, *modules: nn.Module | None) -> None:
    """Bring networks to where they are trained."""
    for module in modules:
        if module is not None:
            placed(module, runtime.device, runtime.memory_format)


@contextmanager
def session_of(config: TrainingSettings, total_steps: int, runtime: Runtime, kind: type[R]) -> Iterator[Session]:
    """The open run at its newest whole checkpoint, or at its start."""
    told = on_rank_zero(lambda: damage(config.out, keys_of_result(kind), ENCODER))
    with Session(config.out, total_steps, runtime, config.checkpoint.keep, config.log) as session:
        if told:
            logger.warning("%s; %s and result.json are made anew from the last checkpoint", told, ENCODER)
        yield session


def train_to_the_end(task: T, update: Update, session: Session, finish: Callable[[T, Session], R]) -> R:
    """Train from where the session stands, then evaluate and leave the result."""
    config = task.config
    pace = Pace(
        config.optim.batch_size, task.steps_per_epoch, config.runtime.log_every, config.checkpoint.every_steps,
        under_way=PREFETCH * task.workers,
    )  # fmt: skip
    with once_trained(lambda: session.step):
        train(task, update, session, pace)
        return finish(task, session)


def leave(kind: type[R], task: Task, session: Session, **known: Any) -> R:
    """Last evaluation, then the network as a plain state dict and the result in the run's folder.

    Args:
        kind: of the result.
        task: at its end.
        session: of the run.
        known: what the result holds beside paths, steps and what the task's evaluation gives.
    """
    left, weights = task.finish()
    out, encoder = session.out, session.out / ENCODER
    result = kind(out=str(out), encoder=str(encoder), steps=session.step, **known, **left)

    def write() -> None:
        session.log.synced_bytes()  # a finished run has all its rows
        with writing(encoder):
            write_result(out, asdict(replace(result, out=".", encoder=ENCODER)), ENCODER, serialised(weights))

    on_rank_zero(write)
    return result


def keys_of_result(kind: type[Result]) -> tuple[str, ...]:
    """Names of what a kind of result holds."""
    return tuple(field.name for field in fields(kind))


def finished_result(out: Path, keys: Sequence[str]) -> dict[str, Any] | None:
    """The result of a run that is finished; None when it is not, or a damaged result can be made anew.

    Args:
        out: the run's folder.
        keys: of its result.

    Raises:
        UserError: when it cannot: training would start from nothing.
    """
    try:
        result, told = read_result(out, keys, ENCODER), ""
        if result is None and (out / ENCODER).exists():
            told = f"{out / 'result.json'} is missing"
    except UserError as error:
        result, told = None, str(error)
    if told and not Checkpoints(out / "checkpoints").paths():
        raise UserError(f"{told}, and no checkpoint is left to make it anew from: restore it, or choose another --out")
    return result

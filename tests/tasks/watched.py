"""Short runs of a task, and what is seen of them."""

import copy
import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mgd_ssl.errors import Interrupted
from mgd_ssl.mgd.mgd import MGD, Target
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.checkpoint import Checkpoints
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update

RATES = ("lr", "momentum", "nesterov", "weight_decay")


@dataclass
class Seen:
    """What was seen of a run."""

    out: Path
    task: Any = None
    batches: list[Any] = field(default_factory=list)
    outputs: list[StepOutput] = field(default_factory=list)
    groups: list[list[dict[str, Any]]] = field(default_factory=list)  # of the optimiser, after every update
    begun_with: dict[str, Tensor] = field(default_factory=dict)  # the student before its first update
    reduced: list[tuple[list[Tensor], list[Tensor], list[Target]]] = field(default_factory=list)
    distilled: list[tuple[list[Tensor], list[Target], float]] = field(default_factory=list)
    teacher_maps: list[list[Tensor]] = field(default_factory=list)  # while matching before the first step
    saved: list[int] = field(default_factory=list)
    compiled: list[nn.Module] = field(default_factory=list)
    threads: int = 0
    children: int = 0
    dtype: torch.dtype | None = None
    layouts: list[bool] = field(default_factory=list)  # whether images and weights are channels_last

    inputs: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def student(self) -> nn.Module:
        """The network under its plain names."""
        student: nn.Module = self.task.module.student
        return getattr(student, "network", student)

    @property
    def mgd(self) -> MGD:
        assert isinstance(self.task.mgd, MGD)
        return self.task.mgd


@contextmanager
def watching(seen: Seen, task: type, steps: int | None = None) -> Iterator[None]:
    """Note what happens in the runs within, and interrupt them before the update after so many.

    Args:
        seen: where it is noted.
        task: class of the runs' task.
        steps: None: run to the end.
    """
    ask, update, save = task.inputs, Update.__call__, Checkpoints.save  # type: ignore[attr-defined]
    reduce, loss, teach, fold = MGD.reduce, MGD.loss, Teacher.forward, Teacher.fold

    def asking(self: Any, batch: Any, step: int) -> tuple[Any, ...]:
        if seen.task is None:
            seen.task = self
            next(m for m in seen.student.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(note)
        seen.threads, seen.children = torch.get_num_threads(), len(multiprocessing.active_children())
        seen.batches.append(copy.deepcopy(batch))
        seen.inputs.append(ask(self, batch, step))
        return seen.inputs[-1]

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.dtype, weight = output.dtype, module.get_parameter("weight")
        seen.layouts = [value.is_contiguous(memory_format=torch.channels_last) for value in (inputs[0], weight)]

    def updating(self: Update, inputs: tuple[Any, ...], step: int) -> StepOutput:
        if not seen.begun_with:
            seen.begun_with = {name: value.clone() for name, value in seen.student.state_dict().items()}
        if step == steps:
            raise Interrupted("stopped", 15)
        output = update(self, inputs, step)
        seen.outputs.append(output)
        seen.groups.append([{key: group[key] for key in RATES} for group in self.optimizer.param_groups])
        return output

    def reducing(self: MGD, maps: list[Tensor], *generator: Any) -> list[Target]:
        targets = reduce(self, maps, *generator)
        seen.reduced.append((maps, [assignment.clone() for assignment in self.assignments], targets))
        return targets

    def distilling(self: MGD, maps: list[Tensor], targets: list[Target]) -> Tensor:
        value = loss(self, maps, targets)
        seen.distilled.append(([each.detach() for each in maps], targets, value.item()))
        return value

    def teaching(self: Teacher, images: Tensor) -> list[Tensor]:
        maps = teach(self, images)
        if seen.task is None:
            seen.teacher_maps.append(maps)
        return maps

    def folding(self: Teacher) -> None:
        fold(self)
        seen.teacher_maps.clear()  # of the images it was tried on

    def saving(self: Checkpoints, number: int, state: dict[str, Any]) -> Path:
        seen.saved.append(number)
        return save(self, number, state)

    with pytest.MonkeyPatch.context() as monkeypatch:
        for owner, name, spy in (
            (task, "inputs", asking), (Update, "__call__", updating), (MGD, "reduce", reducing),
            (MGD, "loss", distilling), (Teacher, "forward", teaching), (Teacher, "fold", folding),
            (Checkpoints, "save", saving),
            (nn.Module, "compile", lambda self, *_, **__: seen.compiled.append(self)),
            (MGD, "compile", lambda self, *_, **__: seen.compiled.append(self)),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, spy)
        yield


class KnownRuns(ABC):
    """Runs that are made once and shared by the cases.

    Args:
        folder: theirs.
        train: the command, in Python.
        task: class of its task.
    """

    def __init__(self, folder: Path, train: Callable[..., Any], task: type) -> None:
        self.folder, self.train, self.task = folder, train, task
        self.known: dict[str, Seen] = {}

    @abstractmethod
    def plainly(self, name: str, **changes: Any) -> dict[str, Any]:
        """Settings of a run of seconds; what is not given is as it is by default."""

    @abstractmethod
    def settings(self, name: str) -> dict[str, Any]:
        """Those of a run that is watched to its end."""

    def __call__(self, name: str) -> Seen:
        if name not in self.known:
            seen = self.known[name] = Seen(self.folder / name)
            with watching(seen, self.task):
                self.train(**self.settings(name))
        return self.known[name]

    def begun(self, name: str, **changes: Any) -> Seen:
        """A run that is interrupted before its first update."""
        if name not in self.known:
            seen = self.known[name] = Seen(self.folder / name)
            with watching(seen, self.task, steps=0), pytest.raises(Interrupted):
                self.train(**self.plainly(name, **changes))
        return self.known[name]

    def two_of_each(self) -> Seen:
        """Begun with two data processes and two threads."""
        data = {**self.plainly("two")["data"], "workers": 2}
        return self.begun("two", data=data, runtime={"threads": 2, "device": "cpu"})

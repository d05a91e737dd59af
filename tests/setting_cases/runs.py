"""Runs with settings that are nobody's default, what is seen of them, and the list of cases that look at it."""

import copy
import multiprocessing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mgd_ssl import pretrain
from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.samples import PretrainBatch
from mgd_ssl.data.upload import Upload
from mgd_ssl.evaluation import knn
from mgd_ssl.evaluation.features import Features
from mgd_ssl.mgd.mgd import MGD, Target
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.checkpoint import Checkpoints
from mgd_ssl.tasks.pretraining import Pretraining
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from tests.conftest import write_images
from tests.runs import tiny, trained_teacher
from tests.tasks.cases import Cases
from tests.tasks.runtime_cases import add_to


@dataclass
class Seen:
    """What was seen of a run."""

    out: Path
    task: Pretraining | None = None
    batches: list[PretrainBatch] = field(default_factory=list)
    losses: list[StepOutput] = field(default_factory=list)
    groups: list[dict[str, float]] = field(default_factory=list)  # of the optimiser, at every update
    averages: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # key before, query, key after
    temperature: float = 0.0
    reduced: list[tuple[list[Tensor], list[Tensor], list[Target]]] = field(default_factory=list)
    distilled: list[tuple[list[Tensor], list[Target], float]] = field(default_factory=list)
    teacher_maps: list[list[Tensor]] = field(default_factory=list)  # while matching before the first step
    voted: list[tuple[int, int, float]] = field(default_factory=list)  # voting images, k, temperature
    shapes: set[tuple[int, ...]] = field(default_factory=set)  # of images without their number
    threads: int = 0
    children: int = 0
    dtype: torch.dtype | None = None
    layouts: list[bool] = field(default_factory=list)  # whether images and weights are channels_last
    compiled: list[nn.Module] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)

    @property
    def first(self) -> Pretraining:
        assert self.task is not None
        return self.task


def watch(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Note what happens in the runs to come."""
    ask, update, normalise, save = Pretraining.inputs, Update.__call__, Upload.normalised, Checkpoints.save
    reduce, loss, teach, fold, vote = MGD.reduce, MGD.loss, Teacher.forward, Teacher.fold, knn.knn_accuracies

    def asking(self: Pretraining, batch: PretrainBatch, finished: int) -> tuple[Any, ...]:
        moco = self.module.moco
        if seen.task is None:
            seen.task = self
            moco.register_forward_hook(note_temperature)
            moco.encoder_q.register_forward_hook(lambda module, inputs, output: queries.append(output.detach().float()))
            moco.encoder_q.get_submodule("conv1").register_forward_hook(note_layout)
        seen.threads, seen.children = torch.get_num_threads(), len(multiprocessing.active_children())
        seen.batches.append(copy.deepcopy(batch))  # its memory is used again
        return ask(self, batch, finished)

    def step(self: Update, inputs: Any, finished: int) -> StepOutput:
        moco = seen.first.module.moco
        before, query = (next(e.parameters()).detach().clone() for e in (moco.encoder_k, moco.encoder_q))
        losses = update(self, inputs, finished)
        seen.averages.append((before, query, next(moco.encoder_k.parameters()).detach().clone()))
        seen.losses.append(losses)
        return losses

    queries: list[Tensor] = []

    def note_temperature(module: nn.Module, inputs: Any, output: Any) -> None:
        cosine = (nn.functional.normalize(queries.pop(), dim=1) * output.keys.float()).sum(dim=1)
        seen.temperature = float((cosine / output.logits[:, 0].float().detach()).median())

    def note_layout(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.dtype = output.dtype
        weight: Tensor = module.get_parameter("weight")
        seen.layouts = [value.is_contiguous(memory_format=torch.channels_last) for value in (inputs[0], weight)]

    def normalised(self: Upload, pixels: Tensor) -> Tensor:
        seen.shapes.add(tuple(pixels.shape[1:]))
        return normalise(self, pixels)

    def reducing(self: MGD, maps: list[Tensor], *generator: Any) -> list[Target]:
        targets = reduce(self, maps, *generator)
        seen.reduced.append((maps, [assignment.clone() for assignment in self.assignments], targets))
        return targets

    def distilling(self: MGD, maps: list[Tensor], targets: list[Target]) -> Tensor:
        value = loss(self, maps, targets)
        seen.distilled.append(([m.detach() for m in maps], targets, value.item()))
        return value

    def folding(self: Teacher) -> None:
        fold(self)
        seen.teacher_maps.clear()  # of the images it was tried on

    def teaching(self: Teacher, pixels: Tensor) -> list[Tensor]:
        maps = teach(self, pixels)
        if seen.task is None and pixels.abs().sum() > 0:  # not the probe of the sizes
            seen.teacher_maps.append(maps)
        return maps

    def voting(bank: Features, asked: Features, ks: list[int], temperatures: list[float], *device: Any) -> Any:
        seen.voted.append((len(bank.labels), *ks, *temperatures))  # type: ignore[arg-type]
        return vote(bank, asked, ks, temperatures, *device)

    def saving(self: Checkpoints, number: int, state: dict[str, Any]) -> Path:
        seen.saved.append(number)
        return save(self, number, state)

    for owner, name, spy in (
        (Pretraining, "inputs", asking), (Update, "__call__", step), (Upload, "normalised", normalised),
        (MGD, "reduce", reducing), (MGD, "loss", distilling),
        (Teacher, "forward", teaching), (Teacher, "fold", folding), (knn, "knn_accuracies", voting),
        (Checkpoints, "save", saving),
        (nn.Module, "compile", lambda self, *_, **__: seen.compiled.append(self)),
        (MGD, "compile", lambda self, *_, **__: seen.compiled.append(self)),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, spy)


class Runs:
    """Runs with settings that are nobody's default, each made once and shared by the cases."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder, self.images = folder, images
        self.teacher = trained_teacher(folder, images)
        self.damaged = folder / "damaged"  # one image of 50 cannot be read
        write_images(self.damaged, 50, seed=3)[17].write_bytes(b"no image")
        self.known: dict[str, Seen] = {}

    def settings(self, name: str) -> dict[str, Any]:
        labelled = {"train": self.images / "train", "val": self.images / "val"}
        named: dict[str, dict[str, Any]] = {
            "plain": {"teacher": self.teacher, "student": "thin_resnet14"},
            "odd": {
                "teacher": self.teacher,
                "seed": 11,
                "data": {
                    "train": self.damaged, "image_size": 40, "recipe": "v2", "crop_scale": (0.5, 0.6),
                    "blur_sigma": (0.7, 1.1), "backend": "device", "workers": 2, "max_unreadable": 0.05,
                    "background": "#102030", "max_pixels": 12345,
                },
                "moco": {
                    "dim": 24, "queue_size": 60, "momentum": 0.6, "temperature": 0.35, "head_width": 40, "bn_splits": 2,
                },
                "mgd": {
                    "weight": 3e-3, "stage_weights": (1.0, 0.2, 0.3, 0.7), "reducer": "max", "margin": "measured",
                    "matching_images": 21, "matching_epochs": (2,),
                },
                "optim": {
                    "epochs": 4, "batch_size": 20, "lr": 0.05, "momentum": 0.8, "weight_decay": 3e-3,
                    "warmup_epochs": 1.5, "lr_schedule": "epoch",
                },
                "knn": {**labelled, "every_epochs": 3, "k": 7, "temperature": 0.3, "max_bank": 36},
                "checkpoint": {"every_steps": 3, "keep": 4},
                "runtime": {"threads": 2, "log_every": 3},
            },
            "local": {
                "teacher": self.teacher,
                "data": {"local_crops": 3, "local_size": 24, "local_scale": (0.1, 0.2), "backend": "device"},
                "terms": {"simreg": {"weight": 1.0}},
                "optim": {"epochs": 1},
            },
            "other": {
                "teacher": self.teacher,
                "taps": ("layer2.0.relu", "layer3.0.relu"),
                "teacher_taps": ("layer2.0.relu", "layer3.0.relu"),
                "seed": 12,
                "data": {"recipe": "v1", "backend": "device"},
                "mgd": {"margin": "initial"},
                "optim": {"epochs": 1},
                "runtime": {"precision": "bfloat16", "channels_last": False, "compile": True},
            },
        }  # fmt: skip
        return tiny(self.images, self.folder / name, **named[name])

    def __call__(self, name: str) -> Seen:
        if name not in self.known:
            seen = self.known[name] = Seen(self.folder / name)

            def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
                (group,) = optimizer.param_groups
                seen.groups.append({key: group[key] for key in ("lr", "momentum", "weight_decay")})

            handle = register_optimizer_step_pre_hook(note)
            with pytest.MonkeyPatch.context() as monkeypatch:
                watch(seen, monkeypatch)
                pretrain(**self.settings(name))
            handle.remove()
        return self.known[name]


case = Cases(PretrainConfig)
add_to(case)

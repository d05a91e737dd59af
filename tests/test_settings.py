"""Every setting reaches what it sets: seen in real runs, not in the objects that are handed around.

A setting without a case fails `test_settings_and_cases_are_the_same`: add a function named after it below.
"""

import copy
import math
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mgd_ssl import TrainingError, UserError, pretrain
from mgd_ssl.config import DEVIATION, MEAN, DataConfig, PretrainConfig, RuntimeConfig
from mgd_ssl.data.samples import PretrainBatch, view_policy
from mgd_ssl.data.upload import Upload
from mgd_ssl.evaluation import knn
from mgd_ssl.evaluation.features import Features
from mgd_ssl.mgd.mgd import MGD, Target
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run import runtime as runtime_module
from mgd_ssl.run.checkpoint import Checkpoints
from mgd_ssl.run.runtime import process as this_process
from mgd_ssl.settings import Settings
from mgd_ssl.tasks.beginning import begin
from mgd_ssl.tasks.pretraining import Pretraining
from mgd_ssl.tasks.teachers import load_teacher
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from moco import View, ViewKey, ViewPolicy, draw_view
from tests.conftest import write_images
from tests.runs import rows, stepper_for, steps_saved, tiny, trained_teacher
from tests.term_cases import CASES as TERM_CASES
from tests.term_cases import TermRuns, term_runs

CONSTANT_MARGIN = -math.sqrt(2 / math.pi)


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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("settings"), image_folder)


Case = Callable[[Runs], None]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Register the case of a setting: `moco_dim` is of `moco.dim`."""
    key = function.__name__.strip("_")
    group = PretrainConfig.model_fields.get(key.partition("_")[0])
    is_group = group is not None and isinstance(group.annotation, type) and issubclass(group.annotation, Settings)
    CASES[key.replace("_", ".", 1) if is_group else key] = function
    return function


def leaves(model: type[Settings], prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    found: list[str] = []
    for name, info in model.model_fields.items():
        is_group = isinstance(info.annotation, type) and issubclass(info.annotation, Settings)
        found += leaves(info.annotation, f"{prefix}{name}.") if is_group else [f"{prefix}{name}"]  # type: ignore[arg-type]
    return found


# the run


@case
def out(run: Runs) -> None:
    seen = run("odd")
    assert {"config.json", "metrics.jsonl", "encoder.pt", "result.json"} <= {path.name for path in seen.out.iterdir()}


@case
def student(run: Runs) -> None:
    for name, arch in (("odd", "thin_resnet10"), ("plain", "thin_resnet14")):
        backbone = build_backbone(arch)
        backbone.fc = nn.Identity()
        backbone.load_state_dict(torch.load(run(name).out / "encoder.pt", weights_only=True), strict=True)


@case
def teacher(run: Runs) -> None:
    network = run("plain").first.teacher
    assert network is not None
    weights = torch.load(run.teacher, weights_only=True)
    pixels = torch.randn(2, 3, 32, 32)
    backbone = build_backbone("thin_resnet14").eval()
    backbone.fc = nn.Identity()
    backbone.load_state_dict(weights)
    before_relu: list[Tensor] = []
    last = list(backbone.get_submodule("layer4").children())[-1]
    last.register_forward_hook(lambda module, inputs, output: before_relu.append(output))
    with torch.no_grad():
        backbone(pixels)
        torch.testing.assert_close(network(pixels)[3].relu(), before_relu[0], rtol=1e-3, atol=1e-4)


@case
def teacher_arch(run: Runs) -> None:
    with pytest.raises(UserError, match="does not fit resnet50"):
        pretrain(**tiny(run.images, run.folder / "arch", teacher=run.teacher, teacher_arch="resnet50"))


@case
def taps(run: Runs) -> None:
    assert run("other").first.module.guide.taps.names == ["layer2.0.relu", "layer3.0.relu"]
    assert run("plain").first.module.guide.taps.names == [f"layer{stage}.0.relu" for stage in range(1, 5)]


@case
def teacher_taps(run: Runs) -> None:
    network = run("other").first.teacher
    assert network is not None
    assert [tuple(map_.shape[1:]) for map_ in network(torch.zeros(1, 3, 32, 32))] == [(128, 8, 8), (256, 4, 4)]
    (maps, _, _), *_ = run("other").reduced
    assert [map_.shape[1] for map_ in maps] == [128, 256]


@case
def teacher_mean(run: Runs) -> None:
    """The teacher sees what it would see if its pixels were normalised so."""
    _teacher_input(run, (0.2, 0.3, 0.4), DEVIATION)
    with pytest.raises(ValueError, match="teacher_mean and teacher_std belong together"):
        PretrainConfig(**tiny(run.images, run.folder / "x", teacher=run.teacher, teacher_mean=(0.5, 0.5, 0.5)))


@case
def teacher_std(run: Runs) -> None:
    _teacher_input(run, MEAN, (0.5, 0.6, 0.7))
    with pytest.raises(ValueError, match="those of a teacher: give one, or leave them out"):
        PretrainConfig(**tiny(run.images, run.folder / "x", teacher_mean=MEAN, teacher_std=DEVIATION))


def _teacher_input(run: Runs, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    config = PretrainConfig(
        **tiny(run.images, run.folder / "x", teacher=run.teacher, teacher_mean=mean, teacher_std=std)
    )
    network, pixels = load_teacher(config), torch.rand(2, 3, 32, 32)
    usual = run("plain").first.teacher
    assert network is not None and usual is not None

    def normalised(by: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
        return (pixels - torch.tensor(by).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)

    found, expected = network(normalised(MEAN, DEVIATION)), usual(normalised(mean, std))
    torch.testing.assert_close(found[3], expected[3], rtol=1e-2, atol=1e-3)
    assert (found[3] - usual(normalised(MEAN, DEVIATION))[3]).abs().max() > 0.01


@case
def log(run: Runs) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("mgd_ssl.run.sinks.sink.find_spec", lambda name: None)
        with pytest.raises(UserError, match="--log wandb needs wandb"):
            pretrain(**tiny(run.images, run.folder / "log", log=("wandb",)))


@case
def student_weights(run: Runs) -> None:
    state = build_backbone("thin_resnet10", 1).state_dict()
    own = {name: value + 0.25 for name, value in state.items() if value.is_floating_point()}
    torch.save(own, run.folder / "begin.pth")
    config = PretrainConfig(**tiny(run.images, run.folder / "x", student_weights=run.folder / "begin.pth"))
    begun = begin(config).encoder.state_dict()
    assert all(torch.equal(begun[name], own[name]) for name in own if not name.startswith("fc."))


@case
def seed(run: Runs) -> None:
    """The weights, the queue and the views of two seeds differ; those of one seed do not."""
    states = []
    for name, number in (("a", 5), ("b", 5), ("c", 6)):
        seen = Seen(run.folder / f"seed_{name}")
        with pytest.MonkeyPatch.context() as monkeypatch:
            watch(seen, monkeypatch)
            settings = tiny(run.images, seen.out, seed=number, optim={"epochs": 1, "lr": 1e-12})
            pretrain(**settings)
        moco = seen.first.module.moco
        states.append([next(moco.encoder_q.parameters()).detach(), moco.queue[:, -8:], seen.batches[0].im_q])
    assert all(torch.equal(*pair) for pair in zip(states[0], states[1], strict=True))
    assert not any(torch.equal(*pair) for pair in zip(states[0], states[2], strict=True))


# data


def view_rows(seen: Seen) -> dict[str, np.ndarray]:
    """Columns of `View` of all views of a run."""
    table = torch.cat([batch.rows.flatten(0, 1) for batch in seen.batches if batch.rows is not None])
    return dict(zip(View._fields, table.numpy().T, strict=True))


@case
def data_train(run: Runs) -> None:
    assert run("odd").first.images.root == run.damaged
    assert len(run("odd").first.images) == 50


@case
def data_image_size(run: Runs) -> None:
    assert run("odd").shapes == {(40, 40, 3)}  # of views and of all crops
    assert run("plain").shapes == {(32, 32, 3)}


@case
def data_recipe(run: Runs) -> None:
    v1, v2 = view_rows(run("other")), view_rows(run("odd"))
    assert set(v1["grey"]) == {0, 2} and not v1["sigma"].any() and np.abs(v1["hue"]).max() > 0.2
    assert set(v2["grey"]) == {0, 1} and v2["sigma"].any() and np.abs(v2["hue"]).max() < 0.101
    weak = draw_view(ViewPolicy.weak(), 40, 36, ViewKey(0, 0, 0, 0))
    assert (weak.brightness, weak.contrast, weak.saturation, weak.hue, weak.grey, weak.sigma) == (1, 1, 1, 0, 0, 0)
    assert view_policy(DataConfig(train=Path("x"), recipe="weak")) == replace(ViewPolicy.weak(), scale=(0.2, 1.0))


@case
def data_crop_scale(run: Runs) -> None:
    views = view_rows(run("odd"))
    share = views["width"] * views["height"] / (40 * 36)
    assert share.min() > 0.45 and share.max() < 0.65  # sides are whole pixels
    assert view_rows(run("other"))["width"].min() < 20


@case
def data_blur_sigma(run: Runs) -> None:
    sigma = view_rows(run("odd"))["sigma"]
    assert sigma[sigma > 0].min() >= 0.7 and sigma.max() <= 1.1


@case
def data_backend(run: Runs) -> None:
    assert all(batch.rows is not None for batch in run("odd").batches)
    assert all(batch.rows is None for batch in run("plain").batches)


@case
def data_workers(run: Runs) -> None:
    assert (run("odd").children, run("plain").children) == (2, 0)


@case
def data_max_unreadable(run: Runs) -> None:
    assert run("odd").first.session.step == 8  # with one unreadable image of 50
    with pytest.raises(TrainingError, match="unreadable"):
        pretrain(**tiny(run.images, run.folder / "strict", data={"train": run.damaged, "max_unreadable": 0.01}))


# contrast


@case
def data_background(run: Runs) -> None:
    assert run("odd").first.images.decoding.background == "#102030"
    assert run("plain").first.images.decoding.background == "white"
    monitor = run("odd").first.monitor
    assert monitor is not None and monitor.bank.decoding.background == "#102030"


@case
def data_max_pixels(run: Runs) -> None:
    assert run("odd").first.images.decoding.max_pixels == 12345
    assert run("plain").first.images.decoding.max_pixels == 100_000_000


@case
def moco_bn_splits(run: Runs) -> None:
    norms = [m for m in run("odd").first.module.moco.encoder_q.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(type(norm) is not nn.BatchNorm2d for norm in norms)
    assert all(
        type(m) is nn.BatchNorm2d
        for m in run("plain").first.module.moco.encoder_q.modules()
        if "BatchNorm" in type(m).__name__
    )


@case
def moco_dim(run: Runs) -> None:
    assert run("odd").losses[0].carried.shape == (20, 24)


@case
def moco_queue_size(run: Runs) -> None:
    assert run("odd").first.module.moco.queue.shape == (24, 60)


@case
def moco_momentum(run: Runs) -> None:
    for name, momentum in (("odd", 0.6), ("plain", 0.99)):  # of a short run
        before, query, after = run(name).averages[-1]
        assert (before - query).abs().max() > 1e-3
        torch.testing.assert_close(after, momentum * before + (1 - momentum) * query, rtol=1e-5, atol=1e-7)


@case
def moco_temperature(run: Runs) -> None:
    assert run("odd").temperature == pytest.approx(0.35, rel=1e-4)
    assert run("plain").temperature == pytest.approx(0.2, rel=1e-4)


@case
def moco_head_width(run: Runs) -> None:
    assert run("odd").first.module.moco.encoder_q.get_parameter("fc.0.weight").shape[0] == 40


# distillation


@case
def mgd_weight(run: Runs) -> None:
    for name, weight in (("odd", 3e-3), ("plain", 1.22e-3)):  # 12.25 times fewer elements than published
        seen = run(name)
        for output, (_, _, distance) in zip(seen.losses, seen.distilled, strict=True):
            assert distance > 0 and output.losses["mgd"].item() == pytest.approx(weight * distance)
            expected = output.losses["contrastive"].item() + weight * distance
            assert output.total.item() == pytest.approx(expected)


@case
def mgd_stage_weights(run: Runs) -> None:
    for name, weights in (("odd", (1.0, 0.2, 0.3, 0.7)), ("plain", (0.125, 0.25, 0.5, 1.0))):
        maps, targets, found = run(name).distilled[0]  # the norms are as they start
        expected = 0.0
        for weight, student_map, target in zip(weights, maps, targets, strict=True):
            parts = student_map.double().chunk(2 if name == "odd" else 1)  # moco.bn_splits
            means = [part.mean(dim=(0, 2, 3), keepdim=True) for part in parts]
            variances = [part.var(dim=(0, 2, 3), unbiased=False, keepdim=True) for part in parts]
            values = torch.cat(
                [(p - mean) / (var + 1e-5).sqrt() for p, mean, var in zip(parts, means, variances, strict=True)]
            )
            clipped = torch.maximum(target.map.double(), target.margin.double()[:, None, None])
            counts = (values > clipped) | (target.map > 0)
            expected += weight * float(((values - clipped) ** 2)[counts].sum())
        assert found == pytest.approx(expected / len(maps[0]), rel=1e-4)


@case
def mgd_reducer(run: Runs) -> None:
    for name in ("odd", "plain"):
        teacher_maps, assignments, targets = run(name).reduced[0]
        for teacher_map, assignment, target in zip(teacher_maps, assignments, targets, strict=True):
            group = teacher_map[:, assignment]  # [N, C_s, G, H, W]
            largest = group.amax(dim=2)
            absolute = torch.where(largest >= -group.amin(dim=2), largest, group.amin(dim=2))
            torch.testing.assert_close(target.map, largest if name == "odd" else absolute)
    assert any((assignment.shape[1] > 1) for assignment in run("odd").reduced[0][1])


@case
def mgd_margin(run: Runs) -> None:
    odd, plain, other = (run(name).first.mgd for name in ("odd", "plain", "other"))
    assert odd is not None and plain is not None and other is not None
    for stage, margin in enumerate(other.margins):
        torch.testing.assert_close(margin, torch.full_like(margin, CONSTANT_MARGIN))
        # of BatchNorms that were hardly trained: near the constant, and not it
        assert 0 < (plain.margins[stage] - CONSTANT_MARGIN).abs().max() < 0.5
    weights = torch.load(run.teacher, weights_only=True)
    gamma, beta = (weights[f"layer1.0.bn3.{kind}"].double() for kind in ("weight", "bias"))
    normal = torch.distributions.Normal(0.0, 1.0)
    ratio = beta / gamma
    expected = beta - gamma * normal.log_prob(ratio).exp() / normal.cdf(-ratio)
    torch.testing.assert_close(plain.margins[0].double(), expected, rtol=1e-4, atol=1e-5)
    seen = run("odd").teacher_maps  # of the update before the first step, and maps do not change
    for stage, targets in enumerate(run("odd").reduced[0][2]):
        values = torch.cat([maps[stage] for maps in seen]).double()
        measured = torch.stack([channel[channel < 0].mean().nan_to_num() for channel in values.unbind(dim=1)])
        assignment = run("odd").reduced[0][1][stage]
        torch.testing.assert_close(targets.margin.double(), measured[assignment].amax(dim=1), rtol=1e-3, atol=1e-4)


@case
def mgd_matching_images(run: Runs) -> None:
    assert sum(len(maps[0]) for maps in run("odd").teacher_maps) == 21


@case
def mgd_matching_epochs(run: Runs) -> None:
    for name, steps in (("odd", [0, 4]), ("plain", [0, 3])):
        assert [row["step"] for row in rows(run(name).out) if row["kind"] == "matching"] == steps


# optimiser


@case
def optim_epochs(run: Runs) -> None:
    assert len(run("odd").batches) == 4 * 2 and len(run("plain").batches) == 3 * 3


@case
def optim_batch_size(run: Runs) -> None:
    assert {len(batch.im_q) for batch in run("odd").batches} == {20}


def rates(run: Runs, name: str) -> list[float]:
    return [group["lr"] for group in run(name).groups]


@case
def optim_lr(run: Runs) -> None:
    assert max(rates(run, "odd")) == pytest.approx(0.05 * (0.001 + 0.999 * 1 / 1.5))  # in warm-up's last epoch
    assert max(rates(run, "plain")) == pytest.approx(0.03 * 0.5 * (1 + math.cos(math.pi / 3)))


@case
def optim_momentum(run: Runs) -> None:
    assert {group["momentum"] for group in run("odd").groups} == {0.8}


@case
def optim_weight_decay(run: Runs) -> None:
    assert {group["weight_decay"] for group in run("odd").groups} == {3e-3}
    assert {group["weight_decay"] for group in run("plain").groups} == {1e-4}


@case
def optim_warmup_epochs(run: Runs) -> None:
    # 1.5 epochs, by whole epochs: the second one is two thirds of the way up from a thousandth
    warm = [0.05 / 1000, 0.05 * (0.001 + 0.999 * 1 / 1.5)]
    assert rates(run, "odd")[:4] == pytest.approx([warm[0], warm[0], warm[1], warm[1]])
    # one epoch of three steps, by step
    assert rates(run, "plain")[:3] == pytest.approx([0.03 * (0.001 + 0.999 * step / 3) for step in range(3)])


@case
def optim_lr_schedule(run: Runs) -> None:
    falling = [0.05 * 0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (2, 3)]
    assert rates(run, "odd")[4:] == pytest.approx([falling[0], falling[0], falling[1], falling[1]])
    smooth = [0.03 * 0.5 * (1 + math.cos(math.pi * step / 9)) for step in range(3, 9)]
    assert rates(run, "plain")[3:] == pytest.approx(smooth)
    logged = [(row["step"], row["lr"]) for row in rows(run("plain").out) if row["kind"] == "train"]
    assert logged == [(step, rates(run, "plain")[step - 1]) for step, _ in logged]


# k-NN


@case
def knn_train(run: Runs) -> None:
    found = run("odd").first.monitor
    assert found is not None and found.bank.root == run.images / "train" and run("plain").first.monitor is None


@case
def knn_val(run: Runs) -> None:
    found = run("odd").first.monitor
    assert found is not None and found.queries.root == run.images / "val"


@case
def knn_every_epochs(run: Runs) -> None:
    assert [row["step"] for row in rows(run("odd").out) if row["kind"] == "knn"] == [0, 6, 8]


@case
def knn_k(run: Runs) -> None:
    assert {k for _, k, _ in run("odd").voted} == {7}


@case
def knn_temperature(run: Runs) -> None:
    assert {temperature for *_, temperature in run("odd").voted} == {0.3}


@case
def knn_max_bank(run: Runs) -> None:
    assert {count for count, *_ in run("odd").voted} == {36}


# the program


@case
def checkpoint_every_steps(run: Runs) -> None:
    assert run("odd").saved == [2, 3, 4, 6, 8]  # and at the end of every epoch of two steps


@case
def checkpoint_keep(run: Runs) -> None:
    assert steps_saved(run("odd").out) == [3, 4, 6, 8]


@case
def runtime_device(run: Runs) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with this_process(RuntimeConfig(device="cpu", threads=1)) as runtime:
            assert runtime.device.type == "cpu"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UserError, match="torch sees no GPU"):
            pretrain(**tiny(run.images, run.folder / "gpu", runtime={"device": "cuda"}))


@case
def runtime_precision(run: Runs) -> None:
    assert (run("plain").dtype, run("other").dtype) == (torch.float32, torch.bfloat16)


@case
def runtime_channels_last(run: Runs) -> None:
    assert (run("plain").layouts, run("other").layouts) == ([True, True], [False, False])


@case
def teacher_precision(run: Runs) -> None:
    maps = {}
    for wanted in ("float32", "bfloat16"):
        settings = tiny(run.images, run.folder / f"teacher in {wanted}", teacher=run.teacher, teacher_precision=wanted)
        stepper, batches = stepper_for(settings, 1)
        (_, _, targets, *_) = stepper.task.inputs(batches[0], 0)
        maps[wanted] = [target.map for target in targets["mgd"]]
    assert {each.dtype for each in maps["float32"]} == {torch.float32}
    assert {each.dtype for each in maps["bfloat16"]} == {torch.bfloat16}
    for exact, rounded in zip(*maps.values(), strict=True):
        cosine = torch.nn.functional.cosine_similarity(rounded.float().flatten(1), exact.flatten(1))
        assert cosine.mean() > 0.99  # a few values change their sign, where two of a group are nearly opposite


@case
def runtime_deterministic(run: Runs) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        chosen: list[bool] = []
        monkeypatch.setattr(runtime_module, "choose_kernels", chosen.append)
        for name, answer in (("is_available", True), ("device_count", 1), ("set_device", None)):
            monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer: answer)
        for wanted in (False, True):
            with this_process(RuntimeConfig(deterministic=wanted, precision="float32", threads=1)):
                pass
        assert chosen == [False, True]


@case
def runtime_compile(run: Runs) -> None:
    task = run("other").first
    assert task.teacher is not None and task.mgd is not None and task.in_step is not None
    teachers = [task.teacher.backbone, task.in_step.backbone]  # in float32 for matching, and as in training
    wanted = [task.module.moco.encoder_q, task.module.moco.encoder_k, *teachers, task.mgd]
    assert {id(module) for module in run("other").compiled} == {id(module) for module in wanted}
    assert run("plain").compiled == []


@case
def runtime_threads(run: Runs) -> None:
    assert (run("odd").threads, run("plain").threads) == (2, 1)


@case
def runtime_log_every(run: Runs) -> None:
    assert [row["step"] for row in rows(run("odd").out) if row["kind"] == "train"] == [3, 6, 8]


@pytest.fixture(scope="module")
def by_terms(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, run: Runs) -> TermRuns:
    checkpoint = max((run.teacher.parent / "checkpoints").glob("*.pt"))
    return term_runs(tmp_path_factory.mktemp("terms"), image_folder, checkpoint)


@pytest.mark.parametrize("key", TERM_CASES)
def test_setting_of_a_term_reaches_what_it_sets(key: str, by_terms: TermRuns) -> None:
    TERM_CASES[key](by_terms)


def test_settings_and_cases_are_the_same() -> None:
    assert sorted([*CASES, *TERM_CASES]) == sorted(leaves(PretrainConfig)), "add a case for every new setting, above"


@pytest.mark.parametrize("key", CASES)
def test_setting_reaches_what_it_sets(key: str, run: Runs) -> None:
    CASES[key](run)

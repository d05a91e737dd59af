"""Replays recorded runs of the published programs of classification: every file of the folder MGD_TASK_REFERENCE.

The recordings and how they were made: docs/reference.md; `recipe_tasks.py` rebuilds weights, images and labels.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mgd_ssl.distillation.guide import Guide
from mgd_ssl.distillation.kd import LogitDistillation
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.distillation.term import Seen
from mgd_ssl.mgd.matching import MatchingStatistics, assign, total_cost
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.mgd.reducers import REDUCERS, taken
from mgd_ssl.networks.backbones import build_backbone, stage_taps
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.tasks.classifier import GuidedClassifier
from mgd_ssl.training.update import Update, sgd
from tests.recorded_tasks import (
    CPU,
    FOLDER,
    RECORDED_REDUCERS,
    REDUCED,
    Recorded,
    assignment_of,
    close,
    load_recipe,
    on_the_recording_cpu,
    tensor,
)

UNITS = sorted(FOLDER.glob("units_cls_*_seed*.npz"))


RUNS = sorted(FOLDER.glob("train_cls_*_seed*.npz"))


OURS = {
    "r152": "resnet152", "r50": "resnet50", "mbv1": "mobilenet_v1",
    "mbv2": "mobilenet_v2_moved_stride", "shv2": "shufflenet_v2_x1_0",
}  # fmt: skip


class Rounding(NamedTuple):
    """What float32 takes off: twice the distance of the same networks in float64 from what was recorded, or twice what
    a disturbance of float32's size does to them in float64, where that is more (docs/reference.md).

    Convolutions round differently from CPU to CPU, and a random network amplifies that from stage to stage and from
    step to step; the deepest one, ResNet-152, by three digits more than the others.
    """

    costs: tuple[float, float, float, float]  # of a pair's mean cost in each stage, absolute
    steps: tuple[float, float, float]  # of the losses of each step, relative
    maps: float  # of a channel's mean, absolute
    gradients: tuple[float, float]  # of their norms, and of the first convolution's elements, of the largest


ROUNDING = {
    "r152_r50": Rounding((1.2e-6, 6.4e-6, 3.2e-4, 5e-3), (1.1e-5, 1e-3, 2.2e-2), 3e-3, (1.2e-3, 7e-2)),
    "r50_mbv1": Rounding((1.2e-6, 4.8e-6, 3.4e-5, 2e-4), (1e-5, 1e-5, 2.4e-5), 2e-4, (1e-5, 1.4e-4)),
    "r50_mbv2": Rounding((1e-6, 4e-6, 2.8e-5, 1.8e-4), (1e-5, 1e-5, 4.6e-5), 2e-4, (1e-2, 7e-2)),
    "r50_shv2": Rounding((1e-6, 3.2e-6, 2.8e-5, 1.7e-4), (1e-5, 2.6e-5, 2.2e-4), 2e-4, (2e-5, 1e-3)),
}


def test_there_are_recordings() -> None:
    assert UNITS and RUNS and REDUCED, f"no recordings in {FOLDER}"


class Pair:
    """Student and teacher of a recording, before its first step."""

    def __init__(self, path: Path) -> None:
        match = re.fullmatch(r"(?:units|train)_cls_([a-z]+\d+)_([a-z]+\d+)_seed(\d+)", path.stem)
        assert match
        self.recipe, self.seed = load_recipe(), int(match[3])
        self.rounding = ROUNDING[f"{match[1]}_{match[2]}"]
        self.units = dict(np.load(path.with_name(path.name.replace("train_", "units_"))))
        self.classes = 1000 if match[2] in ("r50", "mbv1") else 200
        self.student = self._network(OURS[match[2]], self.seed, "s")
        self.teacher = Teacher(self._network(OURS[match[1]], self.seed + 1000, "t"))
        self.post_relu = match[2] == "shv2"
        self.taps = stage_taps(self.student)
        self.published = "sm" if match[1] == "r152" else "amp"
        self.kd = self.classes == 200
        self.stages = [tap.stage for tap in self.taps]
        self.teacher.stages = [tap for tap in self.teacher.stages if tap.stage in self.stages]

    def _network(self, arch: str, seed: int, prefix: str) -> nn.Module:
        network = build_backbone(arch)
        state = self.recipe.filled(network.state_dict(), seed, "position" if arch == "mobilenet_v1" else "name")
        self.recipe.statistics_from(state, self.units[f"{prefix}_running_mean"], self.units[f"{prefix}_running_var"])
        network.load_state_dict(state)
        return network

    def relus(self) -> list[str]:
        """Where the student is read: the recorded ShuffleNet's last map is overwritten by the ReLU after it."""
        names = [tap.relu for tap in self.taps]
        return [*names[:-1], "conv5"] if self.post_relu else names

    def classifier(self, reducer: str) -> tuple[GuidedClassifier, MGD]:
        weights = [2.0 ** (stage - 4) for stage in self.stages]
        teachers = self.teacher.stages
        mgd = MGD(
            [tap.channels for tap in self.taps], [tap.channels for tap in teachers],
            self.teacher.margins(), RECORDED_REDUCERS[reducer], weights, drop_remainder=True,
        )  # fmt: skip
        terms: dict[str, nn.Module] = {"mgd": MatchedMaps(mgd)}
        factors = {"mgd": 1e-4}
        if self.kd:
            terms["kd"], factors["kd"] = LogitDistillation(1.5), 1.0
        return GuidedClassifier(self.student, Guide(self.student, self.relus(), terms, factors)), mgd

    def teacher_maps(self, images: Tensor) -> list[Tensor]:
        maps, _ = self.teacher.watched(images)
        return [map_ for map_, stage in zip(maps, range(1, 5), strict=True) if stage in self.stages]

    def seen(self, images: Tensor) -> Seen:
        return Seen(self.teacher_maps(images), self.teacher.watched(images)[1])

    def match(self, module: GuidedClassifier, mgd: MGD, batches: list[Tensor]) -> list[Tensor]:
        statistics = MatchingStatistics(mgd.student_channels, mgd.teacher_channels)
        module.eval()
        for images in batches:
            statistics.update(module.student_maps(images), self.teacher_maps(images))
        module.train()
        return statistics.mean_costs()


def check_costs(pair: Pair, costs: list[Tensor], recorded: Recorded, sparse: bool) -> None:
    for stage, cost in zip(pair.stages, costs, strict=True):
        whole = f"cost{stage}" in recorded
        expected = recorded[f"cost{stage}"] if whole else recorded[f"cost{stage}_corner"]
        rounding = pair.rounding.costs[stage - 1]
        close(cost if whole else cost[:32, :32], expected, 0, rounding)
        close(cost.mean(1), recorded[f"cost{stage}_rows"] / cost.shape[1], 0, rounding)
        close(cost.mean(0), recorded[f"cost{stage}_cols"] / cost.shape[0], 0, rounding)
        name = f"assign{stage}"
        theirs = assignment_of(recorded[name], len(cost))
        kept = cost if sparse else cost[:, : theirs.numel()]
        found = total_cost(kept, assign(kept, theirs.shape[1]))
        assert found <= total_cost(cost, theirs) * (1 + 1e-9)
        close(found, recorded[f"{name}_optimum"], rounding)
        everything = total_cost(cost, assign(cost, theirs.shape[1]))
        assert everything <= float(recorded[f"{name}_rectangular_optimum"]) * (1 + rounding)
        close(total_cost(cost, theirs), recorded[f"{name}_total"], max(2e-6, rounding))


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_networks(path: Path) -> None:
    on_the_recording_cpu(replay_units, path)


def replay_units(path: Path) -> None:
    pair, recorded = Pair(path), dict(np.load(path))
    module, mgd = pair.classifier(pair.published)
    for stage, margin in zip(pair.stages, mgd.margins, strict=True):
        close(margin, recorded[f"margin{stage}"], 1e-6, 1e-6)
    x0, x1 = (pair.recipe.images(10 * pair.seed + i, 4, 64) for i in range(2))
    module.eval()
    with torch.no_grad():
        logits = {"t": pair.teacher.watched(x0)[1][:2], "s": pair.student(x0)[:2]}
    for prefix, found in logits.items():
        expected = recorded[f"{prefix}_logits"]
        close(found, expected, 0, pair.rounding.costs[-1] * float(np.abs(expected).max()))
    for prefix, maps in (("s", module.student_maps(x0)), ("t", pair.teacher_maps(x0))):
        for stage, map_ in zip(pair.stages, maps, strict=True):
            assert list(map_.shape) == recorded[f"{prefix}_tap{stage}_shape"].tolist()
            close(map_.mean((0, 2, 3)), recorded[f"{prefix}_tap{stage}_mean"], 0, pair.rounding.maps)
            close(map_.abs().mean((0, 2, 3)), recorded[f"{prefix}_tap{stage}_absmean"], 0, pair.rounding.maps)
    check_costs(pair, pair.match(module, mgd, [x0, x1]), recorded, sparse=False)

    # reducers on these maps
    labels = pair.recipe.labels(pair.seed, 4, pair.classes)
    teacher = pair.seen(x0)
    for name in RECORDED_REDUCERS:
        check_reducer(name, pair, teacher, recorded)

    # one step
    mgd.set_assignments([
        assignment_of(recorded[f"assign{'_sm' if pair.published == 'sm' else ''}{stage}"], tap.channels)
        for stage, tap in zip(pair.stages, pair.taps, strict=True)
    ])  # fmt: skip
    module.train()
    output = module(x0, labels, module.guide.prepare(teacher, 0))
    close(output.losses["cross_entropy"].item(), recorded["cross_entropy"], 1e-5)
    close(output.losses["mgd"].item(), recorded[f"{pair.published}_distillation"] / 4 / 1e4, 1e-5)
    if pair.kd:
        close(output.losses["kd"].item(), recorded["kd_loss"], 1e-5)
    assert bool(recorded["total_with_kd"]) == pair.kd
    close(output.total.item(), recorded["total"], pair.rounding.steps[0])
    output.total.backward()
    check_gradients(pair, recorded)


def check_reducer(name: str, pair: Pair, teacher: Seen, recorded: Recorded) -> None:
    for stage, tap, map_ in zip(pair.stages, pair.taps, teacher.maps, strict=True):
        margins = tensor(recorded[f"margin{stage}"])
        assignment = assignment_of(recorded[f"assign{'_sm' if name == 'sm' else ''}{stage}"], tap.channels)
        if name == "rd":
            drawn = tensor(recorded[f"rd_draw{stage}"].astype(np.int64)).view(len(map_), tap.channels, *map_.shape[2:])
            drawn_margin = tensor(recorded[f"rd_margin_draw{stage}"].astype(np.int64))
            target, margin = taken(map_, margins, assignment, drawn, drawn_margin)
        else:
            target, margin = REDUCERS[RECORDED_REDUCERS[name]](map_, margins, assignment)
        close(margin, recorded[f"{name}_margin{stage}"], 1e-5, 1e-6)
        expected = recorded[f"{name}_target{stage}_sum"]
        size = target.numel() // tap.channels
        close(target.double().mean((0, 2, 3)), expected / size, 0, pair.rounding.maps)


def check_gradients(pair: Pair, recorded: Recorded) -> None:
    gradients = [parameter.grad for parameter in pair.student.parameters() if parameter.grad is not None]
    norms = torch.stack([gradient.double().norm() for gradient in gradients])
    expected = recorded["grad_norms"]
    of_norms, of_stem = pair.rounding.gradients
    close(norms, expected, 0, of_norms * float(expected.max()))
    stem = recorded["grad_stem"]
    close(gradients[0], stem, 0, of_stem * float(np.abs(stem).max()))
    close(gradients[-1], recorded["grad_last_bias"], 1e-4, 1e-6)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_matching_and_three_training_steps(path: Path) -> None:
    on_the_recording_cpu(replay_training, path)


def replay_training(path: Path) -> None:
    pair, recorded = Pair(path), dict(np.load(path))
    module, mgd = pair.classifier(pair.published)
    images = pair.recipe.images
    costs = pair.match(module, mgd, [images(10 * pair.seed + b, 8, 64) for b in (2, 3, 4)])
    check_costs(pair, costs, recorded, pair.published == "sm")
    mgd.set_assignments([
        assignment_of(recorded[f"assign{stage}"], tap.channels)
        for stage, tap in zip(pair.stages, pair.taps, strict=True)
    ])  # fmt: skip
    update = Update(module, sgd(module.parameters(), 1e-4, 0.9, 1e-4, nesterov=True), lambda step: 1e-4, CPU)
    for step, (cross_entropy, distillation, kd, total) in enumerate(recorded["losses"].tolist()):
        batch = images(100 * pair.seed + step, 8, 64)
        labels = pair.recipe.labels(100 * pair.seed + step, 8, pair.classes)
        output = update((batch, labels, module.guide.prepare(pair.seen(batch), step)), step)
        found = {name: loss.item() for name, loss in output.losses.items()}
        rounding = pair.rounding.steps[step]
        close(found["cross_entropy"], cross_entropy, rounding)
        close(found["mgd"], distillation / 8 / 1e4, rounding)
        if pair.kd:
            close(found["kd"], kd, rounding)
        close(output.total.item(), total, rounding)

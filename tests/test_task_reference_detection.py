"""Replays recorded runs of the published program of detection: every file of the folder MGD_TASK_REFERENCE.

As tests/test_task_reference.py, which has the classifiers.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.mgd.matching import MatchingStatistics, assign, matching_cost, total_cost
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.backbones import build_backbone, set_head
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.tasks.detection.build import build
from mgd_ssl.tasks.detection.config import DetectConfig
from mgd_ssl.tasks.detection.detect import LearningRate
from mgd_ssl.tasks.detection.detection import length
from mgd_ssl.tasks.detection.norms import group_norm
from mgd_ssl.tasks.detection.padding import PaddedSeen
from mgd_ssl.tasks.detection.samples import Prepared, padded
from mgd_ssl.tasks.detection.uploaded import Uploaded
from mgd_ssl.tasks.detection.weights import Beginning
from tests.recorded_tasks import COPY, CPU, FOLDER, assignment_of, close, load_recipe, on_the_recording_cpu, tensor

UNITS = sorted(FOLDER.glob("units_det_r50_r18_seed*.npz"))
STAGES = (1, 2, 3, 4)
# as published for 8 processes of 2 images: a mean over the processes of loss / (5e7, 5e7, 5e6, 5e6) / 16
CONFIG = DetectConfig(out=Path("unused"), network={"group_norm_last_blocks": True})


def test_there_are_recordings() -> None:
    assert UNITS, f"no recordings of detection in {FOLDER}"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_networks_matching_and_losses(path: Path) -> None:
    on_the_recording_cpu(replay, path)


def network(arch: str, seed: int, recorded: dict[str, np.ndarray], whose: str) -> nn.Module:
    recipe, new = load_recipe(), build_backbone(arch)
    state = recipe.filled(new.state_dict(), seed)
    recipe.statistics_from(state, recorded[f"{whose}_running_mean"], recorded[f"{whose}_running_var"])
    new.load_state_dict(state)
    set_head(new, nn.Identity())
    return new.eval()


def batch_of(sizes: np.ndarray, first: int) -> tuple[Tensor, Tensor]:
    """The recorded images through our padding and normalisation."""
    recipe = load_recipe()
    prepared = []
    for k, (height, width) in enumerate(sizes.tolist()):
        pixels = recipe.pixels(first + k, (height, width)).permute(1, 2, 0).numpy().astype(np.uint8)
        prepared.append(Prepared(pixels, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), k, (1.0, 1.0)))
    return Uploaded(CPU)(padded(prepared, []))


def replay(path: Path) -> None:
    recorded, seed = dict(np.load(path)), int(path.stem.rpartition("seed")[2])
    teacher = Teacher(network("resnet50", seed + 1000, recorded, "t"))
    body = network("resnet18", seed, recorded, "s")
    method = build(CONFIG, Beginning(body, "resnet18", None), 80, teacher).eval()
    (matched,) = (term for _, term in method.guide.named_terms())
    assert isinstance(matched, MatchedMaps)
    mgd = matched.mgd

    images, _ = batch_of(recorded["sizes"], 10 * seed)
    assert list(images.shape) == recorded["padded_shape"].tolist()
    close(images[:, :, 60:68, 64:72], recorded["padded_corner"], 1e-5, 1e-6)
    seen = {"t": teacher(images), "s": method.student_maps(images)}
    for stage, margin in zip(STAGES, mgd.margins, strict=True):
        close(margin, recorded[f"margin{stage}"], 1e-5, 1e-6)
        for whose, maps in seen.items():
            map_, absolute = maps[stage - 1].double(), recorded[f"{whose}_tap{stage}_absmean"]
            assert list(map_.shape) == recorded[f"{whose}_tap{stage}_shape"].tolist()
            loose = 1e-5 * float(absolute.max())
            close(map_.mean((0, 2, 3)), recorded[f"{whose}_tap{stage}_mean"], 0, loose)
            close(map_.abs().mean((0, 2, 3)), absolute, 0, loose)

    statistics = MatchingStatistics(mgd.student_channels, mgd.teacher_channels)
    second, _ = batch_of(recorded["sizes_matching"][1], 10 * seed + 50)
    for batch in (images, second):
        statistics.update(method.student_maps(batch), teacher(batch))
    for stage, cost in zip(STAGES, statistics.mean_costs(), strict=True):
        check_cost(stage, cost, recorded)
    channels = mgd.student_channels
    mgd.set_assignments([
        assignment_of(recorded[f"assign{stage}"], c_s) for stage, c_s in zip(STAGES, channels, strict=True)
    ])  # fmt: skip
    check_losses(method, mgd, images, PaddedSeen(seen["t"]), recorded)


def check_cost(stage: int, cost: Tensor, recorded: dict[str, np.ndarray]) -> None:
    close(cost.sum(1), recorded[f"cost{stage}_rows"], 1e-5)
    close(cost.sum(0), recorded[f"cost{stage}_cols"], 1e-5)
    corner = recorded.get(f"cost{stage}_corner", recorded.get(f"cost{stage}"))
    assert corner is not None
    close(cost[: len(corner), : corner.shape[1]], corner, 0, 1e-4)
    total = total_cost(cost, assign(cost))
    assert total <= float(recorded[f"assign{stage}_total"]) * (1 + 1e-5)
    close(total, recorded[f"assign{stage}_optimum"], 1e-5)


def check_losses(method: Any, mgd: MGD, images: Tensor, seen: PaddedSeen, recorded: dict[str, np.ndarray]) -> None:
    targets = method.guide.prepare(seen, 0)
    for stage, target in zip(STAGES, targets["mgd"], strict=True):
        close(target.margin, recorded[f"amp_margin{stage}"], 1e-5, 1e-6)
        expected, size = recorded[f"amp_target{stage}_sum"], target.map[:, 0].numel()
        close(
            target.map.double().sum((0, 2, 3)) / size, expected / size, 0, 1e-5 * float(np.abs(expected / size).max())
        )
    method.student.train()
    for module in method.student.modules():
        assert not isinstance(module, nn.BatchNorm2d)  # of the student all are frozen or of groups
    with method.guide.watch() as ours:
        method.student.body(images)
    for map_ in ours.maps:
        map_.retain_grad()
    losses = method.guide.losses(ours, targets)
    # ours: sum / images * 1/8 * factors; theirs: sum / 16 of this process, of which 8 are averaged
    close(losses["mgd"].item() * 8 * len(images) / 16, recorded["loss_distill"], 1e-5)
    (losses["mgd"] / CONFIG.mgd.weight * len(images)).backward()  # stages weighted by 1, 1, 10, 10: 5e7 x distillation
    for stage, map_ in zip(STAGES, ours.maps, strict=True):
        assert map_.grad is not None
        relative(map_.grad.abs().sum((0, 2, 3)), recorded[f"grad_tap{stage}_abssum"])
        relative(mgd.norms[stage - 1].weight.grad, recorded[f"grad_norm{stage}_weight"])
        relative(mgd.norms[stage - 1].bias.grad, recorded[f"grad_norm{stage}_bias"])
    parameters = dict(method.student.body.named_parameters())
    norms = torch.stack([parameters[name].grad.norm() for name in recorded["grad_names"].tolist()])
    relative(norms, recorded["grad_norms"])
    assert all(parameters[name].grad is None for name in recorded["frozen_names"].tolist())


def relative(found: Any, expected: np.ndarray) -> None:
    """Against the largest, as some gradients are zero in exact arithmetic."""
    close(found, expected, 0, 1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_pyramid_levels_matched_alone(path: Path) -> None:
    recorded, recipe = dict(np.load(path)), load_recipe()
    seed, (_, _, height, width) = int(path.stem.rpartition("seed")[2]), recorded["padded_shape"].tolist()
    losses = []
    for level, name in enumerate((5, 6, 7)):
        shape = (2, 256, height // (8 * 2**level), width // (8 * 2**level))
        t, s = recipe.maps(seed + 2000 + level, shape), recipe.maps(seed + 3000 + level, shape)
        cost = matching_cost(s, t) / len(s)
        close(cost.sum(1), recorded[f"fpn_cost{name}_rows"], 1e-5)
        close(total_cost(cost, assign(cost)), recorded[f"fpn_assign{name}_total"], 1e-5)
        mgd = MGD([256], [256], [tensor(recorded[f"margin{name}"])], norm=group_norm)
        mgd.set_assignments([assignment_of(recorded[f"fpn_assign{name}"], 256)])
        losses.append(2 * mgd([s], [t]).item())
    close(losses, recorded["fpn_losses"], 1e-5)


def test_the_published_schedule() -> None:
    recorded = np.load(next(f / "schedules.npz" for f in (FOLDER, COPY) if (f / "schedules.npz").exists()))
    assert length(CONFIG, 117_266) == 90_000
    schedule = LearningRate(CONFIG, 90_000)
    close([schedule(step) for step in recorded["coco_iterations"].tolist()], recorded["coco_lr"], 1e-6)
    updates = sorted(round(share * 90_000) for share in CONFIG.mgd.matching_at)
    assert updates == recorded["coco_updates"].tolist()

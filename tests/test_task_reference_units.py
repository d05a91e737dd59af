"""Replays recorded parts of the published program of classification: margins, reducers, losses, schedules.

As tests/test_task_reference.py, which has its networks and runs.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from mgd_ssl.distillation.kd import LogitDistillation
from mgd_ssl.distillation.term import Seen
from mgd_ssl.mgd.loss import partial_l2
from mgd_ssl.mgd.margin import relu_margin
from mgd_ssl.mgd.matching import assign, matching_cost, total_cost
from mgd_ssl.mgd.reducers import REDUCERS, taken
from mgd_ssl.training.schedule import WarmupDecay
from tests.recorded_tasks import COPY, FOLDER, RECORDED_REDUCERS, REDUCED, Recorded, assignment_of, close, tensor

# the parts alone


def case_of(path: Path, case: str) -> Recorded:
    return {key.removeprefix(f"{case}_"): value for key, value in np.load(path).items() if key.startswith(f"{case}_")}


CASES = ["wide", "rest", "narrow", "equal"]


@pytest.mark.parametrize("path", REDUCED, ids=lambda path: path.stem)
@pytest.mark.parametrize("case", CASES)
def test_margin_and_assignment(path: Path, case: str) -> None:
    recorded = case_of(path, case)
    close(relu_margin(tensor(recorded["gamma"]), tensor(recorded["beta"])), recorded["margin"], 1e-6, 1e-6)
    s, t, cost = (tensor(recorded[key]) for key in ("s", "t", "cost"))
    ours = matching_cost(s, t)
    close(min((ours, ours / len(s)), key=lambda each: float((each - cost).abs().max())), cost, 1e-6, 1e-6)
    for reducer, name in RECORDED_REDUCERS.items():
        total = total_cost(cost, assign(cost, 1 if REDUCERS[name].takes_one else None))
        assert total <= float(recorded[f"{reducer}_total"]) * (1 + 1e-6)
        close(total, recorded[f"{reducer}_rectangular_optimum"], 1e-6)


@pytest.mark.parametrize("path", REDUCED, ids=lambda path: path.stem)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reducer", RECORDED_REDUCERS)
def test_reducer_loss_and_gradients(path: Path, case: str, reducer: str) -> None:
    recorded = case_of(path, case)
    s, t, margins = tensor(recorded["s"]), tensor(recorded["t"]), tensor(recorded["margin"])
    assignment = assignment_of(recorded[f"{reducer}_assign"], s.shape[1])
    if reducer == "rd":
        drawn, drawn_margin = (tensor(recorded[f"rd_{name}"].astype(np.int64)) for name in ("draw", "margin_draw"))
        target, margin = taken(t, margins, assignment, drawn.view(s.shape), drawn_margin)
    else:
        target, margin = REDUCERS[RECORDED_REDUCERS[reducer]](t, margins, assignment)
    close(target, recorded[f"{reducer}_target"], 1e-5)
    close(margin, recorded[f"{reducer}_margin"], 1e-5)
    norm = nn.BatchNorm2d(s.shape[1])
    loss = partial_l2(norm(s.requires_grad_()), target, margin)
    loss.backward()
    close(loss.item(), recorded[f"{reducer}_loss"], 1e-5)
    found = {"grad": s.grad, "norm_weight_grad": norm.weight.grad, "norm_bias_grad": norm.bias.grad}
    for name, gradient in found.items():
        expected = recorded[f"{reducer}_{name}"]
        close(gradient, expected, 1e-5, 1e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize("path", REDUCED, ids=lambda path: path.stem)
@pytest.mark.parametrize("case", CASES)
def test_logit_distillation(path: Path, case: str) -> None:
    recorded = case_of(path, case)
    logits, term = tensor(recorded["s_logits"]).requires_grad_(), LogitDistillation(1.5)
    loss = term.loss(Seen(output=logits), term.prepare(Seen(output=tensor(recorded["t_logits"])), 0))
    loss.backward()
    close(loss.item(), recorded["kd_loss"], 1e-5)
    close(logits.grad, recorded["kd_grad"], 1e-5, 1e-7)


def test_schedules() -> None:
    recorded = np.load(
        next(folder / "schedules.npz" for folder in (FOLDER, COPY) if (folder / "schedules.npz").exists())
    )
    settings: dict[str, dict[str, Any]] = {
        "imagenet_lr": {"peak": 0.1, "milestones": (41, 71, 91), "warmup_epochs": 10},
        "cub_lr": {"peak": 0.01, "milestones": (31, 61, 81)},
        "base_lr": {"peak": 0.1, "milestones": (30, 60, 90)},
    }
    for name, setting in settings.items():
        epochs = len(recorded[name])
        schedule = WarmupDecay(epochs=epochs, steps_per_epoch=7, **setting)
        rates = np.array([schedule(step) for step in range(7 * epochs)]).reshape(epochs, 7)
        close(rates, np.repeat(recorded[name][:, None], 7, axis=1), 1e-9)

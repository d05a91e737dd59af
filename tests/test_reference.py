"""Replays recorded runs of the published program: every file of the folder MGD_REFERENCE, by name pattern.

The recordings and how they were made: docs/reference.md; `recipe.py` beside them rebuilds weights and images.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mgd_ssl.mgd.loss import partial_l2
from mgd_ssl.mgd.margin import relu_margin
from mgd_ssl.mgd.matching import assign, matching_cost, total_cost
from mgd_ssl.mgd.reducers import REDUCERS
from tests.replay import FOLDER, replay_training, tensor

UNITS = sorted(FOLDER.glob("units_seed*.npz"))


RUNS = sorted(FOLDER.glob("train_*_seed*.npz"))


RECORDED_REDUCERS = {"amp": "amp", "sp": "max", "sm": "sparse"}


def test_there_are_recordings() -> None:
    assert UNITS and RUNS, f"no recordings in {FOLDER}"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_margin(path: Path) -> None:
    recorded = np.load(path)
    margin = relu_margin(tensor(recorded["gamma"]), tensor(recorded["beta"]))
    torch.testing.assert_close(margin, tensor(recorded["margin"]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
@pytest.mark.parametrize("case", ["wide", "equal"])
def test_cost_and_assignment(path: Path, case: str) -> None:
    recorded = {key.removeprefix(f"{case}_"): value for key, value in np.load(path).items() if key.startswith(case)}
    s, t = tensor(recorded["s"]), tensor(recorded["t"])
    cost = tensor(recorded["cost"])
    ours = matching_cost(s, t).double()
    scale = min((1.0, 1 / s.shape[0]), key=lambda factor: float((ours * factor - cost).abs().max()))  # sum or mean
    torch.testing.assert_close(ours * scale, cost, rtol=1e-6, atol=1e-6)
    for per_student, name in ((None, "assign"), (1, "assign_sm")):
        total = float(recorded[f"{name}_total"])
        assert total_cost(cost, assign(cost, per_student)) <= total * (1 + 1e-9)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
@pytest.mark.parametrize("case", ["wide", "equal"])
@pytest.mark.parametrize("reducer", RECORDED_REDUCERS)
def test_reducer_loss_and_gradient(path: Path, case: str, reducer: str) -> None:
    recorded = {key.removeprefix(f"{case}_"): value for key, value in np.load(path).items() if key.startswith(case)}
    channels = recorded["s"].shape[1]
    flat = recorded["assign_sm"] if reducer == "sm" else recorded["assign"]
    assignment = tensor(flat).view(-1, channels).T.contiguous()  # entry g * C_s + s belongs to student channel s
    s = tensor(recorded["s"]).requires_grad_()
    reduce = REDUCERS[RECORDED_REDUCERS[reducer]]
    target, margin = reduce(tensor(recorded["t"]), tensor(recorded["m"]).flatten(), assignment)
    torch.testing.assert_close(target, tensor(recorded[f"{reducer}_t"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(margin, tensor(recorded[f"{reducer}_m"]).flatten(), rtol=1e-5, atol=0)
    loss = partial_l2(s, target, margin)
    loss.backward()
    torch.testing.assert_close(loss.item(), float(recorded[f"{reducer}_loss"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(s.grad, tensor(recorded[f"{reducer}_grad"]), rtol=1e-5, atol=1e-6)


def on_the_recording_cpu(replay: Callable[..., None], *args: Path) -> None:
    """Run in a process of its own with the kernels the runs were recorded with: AVX2, one thread.

    Newer instructions sum in another order, and three training steps of a random ResNet-34 amplify that to the fifth
    digit. torch reads these variables when it is imported.
    """
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as pool,
    ):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
        pool.submit(replay, *args).result()


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_matching_and_three_training_steps(path: Path, tmp_path: Path) -> None:
    on_the_recording_cpu(replay_training, path, tmp_path)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_logit_distillation_recording_is_plain_kl(path: Path) -> None:
    recorded = np.load(path)
    s, t = tensor(recorded["kd_s"]) / 1.5, tensor(recorded["kd_t"]) / 1.5
    loss = F.kl_div(F.log_softmax(s, 1), F.softmax(t, 1), reduction="batchmean") * 1.5**2
    torch.testing.assert_close(loss.item(), float(recorded["kd_loss"]), rtol=1e-5, atol=0)

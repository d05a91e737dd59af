"""Replays recorded runs of the published program: every file of the folder MGD_REFERENCE, by name pattern.

The recordings and how they were made: docs/reference.md; `recipe.py` beside them rebuilds weights and images.
"""

import copy
import importlib.util
import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import ResNet

from mgd_ssl.encoders import build_encoder, stage_taps
from mgd_ssl.loss import partial_l2
from mgd_ssl.margin import relu_margin
from mgd_ssl.matching import MatchingStatistics, assign, matching_cost, total_cost
from mgd_ssl.method import DistilledMoCo
from mgd_ssl.mgd import MGD
from mgd_ssl.reducers import REDUCERS
from mgd_ssl.teacher import Teacher
from moco import MoCo

FOLDER = Path(os.environ.get("MGD_REFERENCE", Path(__file__).parent / "reference"))
UNITS = sorted(FOLDER.glob("units_seed*.npz"))
RUNS = sorted(FOLDER.glob("train_*_seed*.npz"))
RECORDED_REDUCERS = {"amp": "amp", "sp": "max", "sm": "sparse"}


def load_recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe", FOLDER / "recipe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


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


def load_norm_statistics(encoder: nn.Module, recorded: dict[str, np.ndarray], prefix: str) -> None:
    state = encoder.state_dict()
    state |= {key.removeprefix(prefix): tensor(value) for key, value in recorded.items() if key.startswith(prefix)}
    encoder.load_state_dict(state)


def on_the_recording_cpu(replay: Callable[[Path], None], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a process of its own with the kernels the runs were recorded with: AVX2, one thread.

    Newer instructions sum in another order, and three training steps of a random ResNet-34 amplify that to the fifth
    digit. torch reads these variables when it is imported.
    """
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        pool.submit(replay, path).result()


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_matching_and_three_training_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_recording_cpu(replay_training, path, monkeypatch)


def replay_training(path: Path) -> None:
    recorded = dict(np.load(path))
    match = re.fullmatch(r"train_(\w+)_seed(\d+)", path.stem)
    assert match
    arch, seed = match[1], int(match[2])
    recipe = load_recipe()

    student: ResNet = build_encoder(arch, 128)
    recipe.fill(student, seed)
    load_norm_statistics(student, recorded, "s.")
    teacher_encoder = build_encoder("resnet50", 128)
    recipe.fill(teacher_encoder, seed + 1000)
    load_norm_statistics(teacher_encoder, recorded, "t.")
    teacher = Teacher(teacher_encoder)
    queue = recipe.queue(seed)
    moco = MoCo(student, 128, queue.shape[1], momentum=0.999, temperature=0.2)
    moco.queue.copy_(queue)
    taps = stage_taps(student)
    mgd = MGD([tap.channels for tap in taps], teacher.channels, teacher.margins())
    method = DistilledMoCo(moco, mgd, [tap.relu for tap in taps], weight=1e-4)

    # margins
    for i, margin in enumerate(mgd.margins, start=1):
        torch.testing.assert_close(margin, tensor(recorded[f"margin{i}"]), rtol=1e-6, atol=1e-6)

    # matching, both networks in eval mode
    statistics = MatchingStatistics(mgd.student_channels, mgd.teacher_channels)
    method.eval()
    for b in range(2):
        images = recipe.images(10 * seed + b, 8, 64)
        statistics.update(method.student_maps(images), teacher(images))
    costs = statistics.mean_costs()
    mgd.rematch(costs)
    for i, (cost, assignment) in enumerate(zip(costs, mgd.assignments, strict=True), start=1):
        if f"cost{i}" in recorded:
            torch.testing.assert_close(cost.float(), tensor(recorded[f"cost{i}"]), rtol=1e-6, atol=1e-6)
        else:
            corner = tensor(recorded[f"cost{i}_corner"])
            torch.testing.assert_close(cost[:32, :32].float(), corner, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(cost.sum().item(), float(recorded[f"cost{i}_sum"]), rtol=1e-6, atol=0)
        # equal optima may tie: totals are compared, on one cost (convolutions round differently from CPU to CPU,
        # which moves the totals of two machines apart by some 1e-8), and the steps go on with the recorded optimum
        theirs = tensor(recorded[f"assign{i}"].astype(np.int64)).view(-1, assignment.shape[0]).T
        assert total_cost(cost, assignment) <= total_cost(cost, theirs) * (1 + 1e-9)
        torch.testing.assert_close(total_cost(cost, theirs), float(recorded[f"assign{i}_total"]), rtol=1e-7, atol=0)
        assignment.copy_(theirs)

    # three steps
    trained = [*moco.encoder_q.parameters(), *mgd.norms.parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.03, momentum=0.9, weight_decay=1e-4)
    method.train()
    for step in range(3):
        im_q, im_k = (recipe.images(100 * seed + 2 * step + view, 8, 64) for view in range(2))
        if step == 0:
            with torch.no_grad():
                logits = copy.deepcopy(moco)(im_q, im_k).logits
            torch.testing.assert_close(logits, tensor(recorded["logits0"]), rtol=1e-5, atol=1e-5)
        losses = method(im_q, im_k, mgd.reduce(teacher(im_q)))
        contrastive, distillation = recorded["losses"][step]
        torch.testing.assert_close(losses.contrastive.item(), contrastive, rtol=1e-5, atol=0)
        torch.testing.assert_close(1e-4 * losses.distillation.item(), distillation, rtol=1e-5, atol=0)
        losses.total.backward()
        if step == 0:
            check_gradients(student, recorded)
        optimizer.step()
        optimizer.zero_grad()
        moco.enqueue(losses.keys)

    # what is left after them
    assert int(moco.queue_ptr) == int(recorded["queue_ptr"][0])
    torch.testing.assert_close(moco.queue[:, :32], tensor(recorded["queue_end_head"]), rtol=1e-5, atol=1e-6)
    for name, module in (("param", moco.encoder_q), ("key", moco.encoder_k), ("bn", mgd.norms)):
        means = torch.stack([parameter.detach().double().abs().mean() for parameter in module.parameters()])
        torch.testing.assert_close(means, tensor(recorded[f"{name}_absmean"]), rtol=1e-6, atol=1e-6)


def check_gradients(student: nn.Module, recorded: dict[str, np.ndarray]) -> None:
    gradients = {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}
    torch.testing.assert_close(gradients["conv1.weight"], tensor(recorded["grad_conv1"]), rtol=1e-5, atol=2e-6)
    norms = {str(name): norm for name, norm in zip(recorded["grad_names"], recorded["grad_norms"], strict=True)}
    assert norms.keys() == gradients.keys()
    for name, norm in norms.items():  # recorded with float32's norm, which is 1e-4 off for millions of elements
        torch.testing.assert_close(gradients[name].norm().item(), float(norm), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_logit_distillation_recording_is_plain_kl(path: Path) -> None:
    recorded = np.load(path)
    s, t = tensor(recorded["kd_s"]) / 1.5, tensor(recorded["kd_t"]) / 1.5
    loss = F.kl_div(F.log_softmax(s, 1), F.softmax(t, 1), reduction="batchmean") * 1.5**2
    torch.testing.assert_close(loss.item(), float(recorded["kd_loss"]), rtol=1e-5, atol=0)

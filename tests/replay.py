"""Recorded steps of the published program, taken again by our loop."""

import copy
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.resnet import ResNet

from mgd_ssl.config import DataConfig, MGDConfig, OptimConfig, PretrainConfig, RuntimeConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.images import Images
from mgd_ssl.data.samples import EvalBatch, PretrainBatch
from mgd_ssl.data.upload import Upload
from mgd_ssl.distillation.guide import Guide
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.mgd.matching import total_cost
from mgd_ssl.mgd.mgd import MGD, StageMatch
from mgd_ssl.networks.backbones import build_encoder, stage_taps
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.run.session import Session
from mgd_ssl.tasks import pretraining
from mgd_ssl.tasks.moco import GuidedMoCo
from mgd_ssl.tasks.pretraining import Pretraining, update_of
from mgd_ssl.training.loop import Pace, train
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from moco import MoCo

FOLDER = Path(os.environ.get("MGD_REFERENCE", Path(__file__).parent / "reference"))


# Twice what float32 takes off the recorded costs of a stage (the same networks in float64 are 5e-7, 2e-6, 1e-5 and 8e-5
# away): convolutions round differently from CPU to CPU, and a random network amplifies that from stage to stage.
COST_ROUNDING = (1e-6, 4e-6, 2e-5, 1.6e-4)


def load_recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe", FOLDER / "recipe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def load_norm_statistics(encoder: nn.Module, recorded: dict[str, np.ndarray], prefix: str) -> None:
    state = encoder.state_dict()
    state |= {key.removeprefix(prefix): tensor(value) for key, value in recorded.items() if key.startswith(prefix)}
    encoder.load_state_dict(state)


class Recorded(Upload):
    """Pixels [N, H, W, 3] that are normalised already, as the recorded ones are."""

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.permute(0, 3, 1, 2).contiguous()


def epoch_of_three() -> Images:
    """Stands for the images of three steps; nobody opens one."""
    return ImageList(Path("nowhere"), [f"{i}.jpg" for i in range(24)])


class ReplayedTask(Pretraining):
    """The task itself, held against a recording wherever it can be."""

    recorded: dict[str, np.ndarray]
    costs: Sequence[torch.Tensor] = ()

    def rematch(self) -> dict[str, Any]:
        assert self.mgd is not None
        rematch = self.mgd.rematch

        def noted(costs: Sequence[torch.Tensor]) -> list[StageMatch]:
            self.costs = list(costs)
            return rematch(costs)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(self.mgd, "rematch", noted)
            row = super().rematch()
        for i, (cost, assignment) in enumerate(zip(self.costs, self.mgd.assignments, strict=True), start=1):
            check_matching(cost, assignment, self.recorded, i)
        return row

    def inputs(self, batch: PretrainBatch, step: int) -> tuple[Any, ...]:
        if step == 0:
            with torch.no_grad():
                logits = copy.deepcopy(self.module.moco)(*self.upload.views(batch)).logits
            torch.testing.assert_close(logits, tensor(self.recorded["logits0"]), rtol=1e-5, atol=1e-5)
        return super().inputs(batch, step)


class ReplayedUpdate(Update):
    """Likewise."""

    def hold_against(self, recorded: dict[str, np.ndarray]) -> None:
        self.recorded, self.step = recorded, 0
        self.optimizer.register_step_pre_hook(lambda *_: self.check())

    def __call__(self, inputs: tuple[Any, ...], step: int) -> StepOutput:
        self.step = step
        output = super().__call__(inputs, step)
        contrastive, distillation = self.recorded["losses"][step]
        torch.testing.assert_close(output.losses["contrastive"].item(), contrastive, rtol=1e-5, atol=0)
        torch.testing.assert_close(output.losses["mgd"].item(), distillation, rtol=1e-5, atol=0)
        torch.testing.assert_close(output.total.item(), contrastive + distillation, rtol=1e-5, atol=0)
        return output

    def check(self) -> None:
        """What the optimiser is about to do."""
        (group,) = self.optimizer.param_groups
        found = {name: group[name] for name in ("lr", "momentum", "weight_decay", "dampening", "nesterov")}
        assert found == {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4, "dampening": 0, "nesterov": False}
        if self.step == 0:
            check_gradients(self.module.get_submodule("moco.encoder_q"), self.recorded)


def check_matching(cost: torch.Tensor, assignment: torch.Tensor, recorded: dict[str, np.ndarray], stage: int) -> None:
    """Costs and the optimum of a stage; the steps go on with the recorded one."""
    if f"cost{stage}" in recorded:
        found, expected = cost.float(), tensor(recorded[f"cost{stage}"])
    else:
        found, expected = cost[:32, :32].float(), tensor(recorded[f"cost{stage}_corner"])
        torch.testing.assert_close(cost.sum().item(), float(recorded[f"cost{stage}_sum"]), rtol=1e-6, atol=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=COST_ROUNDING[stage - 1])
    # equal optima may tie: totals are compared, on one cost
    theirs = tensor(recorded[f"assign{stage}"].astype(np.int64)).view(-1, assignment.shape[0]).T
    assert total_cost(cost, assignment) <= total_cost(cost, theirs) * (1 + 1e-9)
    torch.testing.assert_close(total_cost(cost, theirs), float(recorded[f"assign{stage}_total"]), rtol=2e-6, atol=0)
    assignment.copy_(theirs)


def recorded_module(path: Path, recorded: dict[str, np.ndarray]) -> tuple[GuidedMoCo, Teacher]:
    """Student and teacher as they were before the first step."""
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
    guide = Guide(student, [tap.relu for tap in taps], {"mgd": MatchedMaps(mgd)}, {"mgd": 1e-4})
    return GuidedMoCo(moco, guide), teacher


def replay_training(path: Path, out: Path) -> None:
    """Three steps of the loop; only the pixels come from the recipe."""
    recorded = dict(np.load(path))
    module, teacher = recorded_module(path, recorded)
    # one epoch of three steps at the peak of the learning rate
    config = PretrainConfig(
        out=out,
        student=path.stem.split("_")[1],
        data=DataConfig(train=Path("nowhere"), workers=0),
        optim=OptimConfig(epochs=1, batch_size=8, lr=0.03, warmup_epochs=0, lr_schedule="epoch"),
        mgd=MGDConfig(matching_images=16),
        runtime=RuntimeConfig(log_every=1),
    )
    seed, recipe = int(path.stem.rpartition("seed")[2]), load_recipe()

    def pixels(number: int) -> torch.Tensor:
        return recipe.images(number, 8, 64).permute(0, 2, 3, 1)

    training = [PretrainBatch(pixels(100 * seed + 2 * i), pixels(100 * seed + 2 * i + 1), []) for i in range(3)]
    matching = [EvalBatch(pixels(10 * seed + i), torch.arange(8), []) for i in range(2)]
    runtime = Runtime(torch.device("cpu"), None, torch.contiguous_format, 1)
    with pytest.MonkeyPatch.context() as monkeypatch, Session(out, 3, runtime) as session:
        monkeypatch.setattr(pretraining, "Upload", Recorded)
        monkeypatch.setattr(pretraining, "view_batches", lambda *_: nullcontext(iter(training)))
        monkeypatch.setattr(pretraining, "one_pass", lambda *_: nullcontext(iter(matching)))
        task = ReplayedTask(config, module, teacher, epoch_of_three(), session)
        task.recorded, mgd = recorded, task.mgd
        assert mgd is not None
        for i, margin in enumerate(mgd.margins, start=1):
            torch.testing.assert_close(margin, tensor(recorded[f"margin{i}"]), rtol=1e-6, atol=1e-6)
        plain = update_of(config, task)
        update = ReplayedUpdate(module, plain.optimizer, plain.learning_rate, runtime)
        update.hold_against(recorded)
        train(task, update, session, Pace(8, 3, 1, 1000))

    # what is left after them
    moco = module.moco
    assert session.step == 3 and len(task.costs) == 4
    assert int(moco.queue_ptr) == int(recorded["queue_ptr"][0])
    torch.testing.assert_close(moco.queue[:, :32], tensor(recorded["queue_end_head"]), rtol=0, atol=1e-5)
    for name, network in (("param", moco.encoder_q), ("key", moco.encoder_k), ("bn", mgd.norms)):
        means = torch.stack([parameter.detach().double().abs().mean() for parameter in network.parameters()])
        torch.testing.assert_close(means, tensor(recorded[f"{name}_absmean"]), rtol=1e-6, atol=1e-6)
    told = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [(row["contrastive"], row["mgd"], row["lr"]) for row in told if row["kind"] == "train"]
    torch.testing.assert_close(
        torch.tensor(rows), torch.tensor([[*pair, 0.03] for pair in recorded["losses"].tolist()]), rtol=1e-5, atol=0
    )


def check_gradients(student: nn.Module, recorded: dict[str, np.ndarray]) -> None:
    gradients = {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}
    torch.testing.assert_close(gradients["conv1.weight"], tensor(recorded["grad_conv1"]), rtol=1e-5, atol=2e-6)
    norms = {str(name): norm for name, norm in zip(recorded["grad_names"], recorded["grad_norms"], strict=True)}
    assert norms.keys() == gradients.keys()
    for name, norm in norms.items():  # recorded with float32's norm, which is 1e-4 off for millions of elements
        torch.testing.assert_close(gradients[name].norm().item(), float(norm), rtol=1e-5, atol=1e-8)

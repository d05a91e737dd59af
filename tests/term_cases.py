"""Cases of the settings of terms, for tests/test_settings.py: what real runs with odd values for all of them show."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl import pretrain
from mgd_ssl.data.bags import save_bags
from mgd_ssl.data.folder import ImageList
from mgd_ssl.distillation.guide import Guide
from mgd_ssl.distillation.term import Seen
from mgd_ssl.tasks.moco import GuidedMoCo
from tests.runs import rows, tiny

STEPS, EPOCHS = 9, 3
SCHEDULES: dict[str, dict[str, Any]] = {
    "mgd": {"weight": 3e-3, "schedule": "linear", "final_share": 0.25, "from_epoch": 0.5, "until_epoch": 2.5},
    "seed": {"weight": 0.3, "schedule": "cosine", "final_share": 0.2, "from_epoch": 0.4, "until_epoch": 2.6},
    "disco": {"weight": 0.4, "schedule": "linear", "final_share": 0.3, "from_epoch": 0.3, "until_epoch": 2.7},
    "simreg": {"weight": 0.5, "schedule": "cosine", "final_share": 0.4, "from_epoch": 0.2, "until_epoch": 2.8},
    "compress": {"weight": 0.6, "schedule": "linear", "final_share": 0.5, "from_epoch": 1.1, "until_epoch": 2.9},
    "bingo": {"weight": 0.8, "schedule": "cosine", "final_share": 0.6, "from_epoch": 0.6, "until_epoch": 2.4},
}
OWN: dict[str, dict[str, Any]] = {
    "seed": {"queue_size": 32, "student_temperature": 0.31, "teacher_temperature": 0.053},
    "disco": {"both_views": False},
    "simreg": {"layers": 2},
    "compress": {"queue_size": 80, "temperature": 0.12},
    "bingo": {"queue_size": 96, "temperature": 0.22, "warm_epochs": 1.5},
}
BALANCES = {"mgd": 0.6, "seed": 0.7, "disco": 0.8, "simreg": 0.9, "compress": 1.1, "bingo": 1.2}


@dataclass
class Step:
    """What the terms of a step were given, and their losses before the weights."""

    student: Seen
    targets: dict[str, Any]
    raw: dict[str, float] = field(default_factory=dict)
    queues: dict[str, Tensor] = field(default_factory=dict)
    mapped: Tensor | None = None  # by the head of compress


@dataclass
class TermRuns:
    """Two runs by all terms: with schedules, and balanced."""

    out: Path
    balanced: Path
    steps: list[Step] = field(default_factory=list)
    method: GuidedMoCo | None = None

    @property
    def terms(self) -> nn.ModuleDict:
        assert self.method is not None
        return self.method.guide.terms

    def row(self, step: int) -> dict[str, Any]:
        """What was logged of one step, from 0."""
        (found,) = (row for row in rows(self.out) if row["kind"] == "train" and row["step"] == step + 1)
        return found


def term_runs(folder: Path, images: Path, teacher: Path) -> TermRuns:
    """Make both; the bags are those of the order of the names."""
    runs = TermRuns(folder / "terms", folder / "balanced")
    files, bags = ImageList.scan(images / "train"), folder / "bags.npz"
    neighbours = (np.arange(len(files))[:, None] + np.arange(1, 4)) % len(files)
    save_bags(bags, neighbours, {"fingerprint": files.fingerprint()})
    own = {**OWN, "bingo": {**OWN["bingo"], "bags": bags}}
    common = {"teacher": teacher, "moco": {"weight": 0.7}, "runtime": {"log_every": 1}}
    losses, forward = Guide.losses, GuidedMoCo.forward

    def noting(self: Guide, student: Seen, targets: dict[str, Any]) -> dict[str, Tensor]:
        step = Step(student, targets)
        with torch.no_grad():
            for name, term in self.named_terms():
                if name in targets:
                    step.raw[name] = float(term.loss(student, targets[name]))
                if name in ("seed", "compress", "bingo"):
                    step.queues[name] = self.get_buffer(f"terms.{name}.queue.rows").clone()
            if "compress" in targets:
                step.mapped = self.get_submodule("terms.compress.head")(student.feature)
        runs.steps.append(step)
        return losses(self, student, targets)

    def keeping(self: GuidedMoCo, *args: Any) -> Any:
        runs.method = self
        return forward(self, *args)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Guide, "losses", noting)
        monkeypatch.setattr(GuidedMoCo, "forward", keeping)
        terms = {name: {**SCHEDULES[name], **own[name]} for name in own}
        pretrain(**tiny(images, runs.out, mgd=SCHEDULES["mgd"], terms=terms, **common))
    balanced: dict[str, Any] = {name: {"weight": 0.1, "balance": BALANCES[name], **own[name]} for name in own}
    balanced["measure_every"] = 4
    optim = {"milestones": (1, 2), "lr_factor": 0.3, "warmup_epochs": 0.5}
    mgd = {"balance": BALANCES["mgd"]}
    pretrain(**tiny(images, runs.balanced, mgd=mgd, terms=balanced, optim=optim, **common))
    return runs


Case = Callable[[TermRuns], None]


def share_left(values: dict[str, Any], step: int) -> float:
    """Of a weight in a step."""
    epoch, begin, end = EPOCHS * step / STEPS, values["from_epoch"], values["until_epoch"]
    if not begin <= epoch < end:
        return 0.0
    gone = (epoch - begin) / (end - begin)
    left = 1 - gone if values["schedule"] == "linear" else (1 + math.cos(math.pi * gone)) / 2
    return values["final_share"] + (1 - values["final_share"]) * left


def weight_over_the_run(name: str) -> Case:
    def check(runs: TermRuns) -> None:
        values = SCHEDULES[name]
        shares = [share_left(values, step) for step in range(STEPS)]
        assert 0 < sum(share > 0 for share in shares) < STEPS and len(set(shares)) > 3
        for step, share in enumerate(shares):
            raw = runs.steps[step].raw.get(name, 0.0)
            assert (raw > 0) == (share > 0)
            assert runs.row(step)[name] == pytest.approx(values["weight"] * share * raw, rel=1e-5)

    return check


def balance(name: str) -> Case:
    def check(runs: TermRuns) -> None:
        measured = [row for row in rows(runs.balanced) if row["kind"] == "spread"]
        for row in measured:
            assert row[f"gradient_{name}"] == pytest.approx(BALANCES[name] * row["gradient_contrastive"], rel=1e-4)
        assert len({row[f"gradient_{name}"] for row in measured}) == len(measured) == 3

    return check


def measure_every(runs: TermRuns) -> None:
    assert [row["step"] for row in rows(runs.balanced) if row["kind"] == "spread"] == [0, 4, 8]


def contrastive_weight(runs: TermRuns) -> None:
    row = next(row for row in rows(runs.out) if row["kind"] == "train")
    assert row["loss"] == pytest.approx(sum(row[name] for name in ("contrastive", *SCHEDULES)), rel=1e-5)
    assert row["contrastive"] < 0.7 * math.log(65) * 1.2  # at the start about as many keys are as near
    assert runs.method is not None and runs.method.weight == 0.7


def queue_size(name: str) -> Case:
    def check(runs: TermRuns) -> None:
        rows_kept = runs.steps[0].queues[name]
        assert len(rows_kept) == OWN[name]["queue_size"]

    return check


def seed_temperatures(runs: TermRuns) -> None:
    student, target, queue, found = given(runs, "seed", 4)
    assert student.output is not None
    s, t = F.normalize(student.output.detach().double(), dim=1), target.double()
    theirs, ours = (torch.cat([(x * t).sum(1, keepdim=True), x @ queue.T], 1) for x in (t, s))
    shares = (theirs / OWN["seed"]["teacher_temperature"]).softmax(1)
    expected = -(shares * (ours / OWN["seed"]["student_temperature"]).log_softmax(1)).sum(1).mean()
    assert found == pytest.approx(expected.item(), rel=1e-5)


def compress_temperature(runs: TermRuns) -> None:
    _, target, queue, found = given(runs, "compress", 5)
    mapped = runs.steps[5].mapped
    assert mapped is not None
    both = (F.normalize(mapped.double(), dim=1), target.double())
    ours, theirs = ((x @ queue.T / OWN["compress"]["temperature"]).log_softmax(1) for x in both)
    assert found == pytest.approx((theirs.exp() * (theirs - ours)).sum(1).mean().item(), rel=1e-4)


def bingo_temperature(runs: TermRuns) -> None:
    student, target, queue, found = given(runs, "bingo", 3)
    views = [student, student.views["member"], student.views["mixed"]]
    q, mq, x = (F.normalize(one.output.detach().double(), dim=1) for one in views if one.output is not None)
    p, p2 = target.anchor.double(), target.member.double()

    def nce(a: Tensor, positive: Tensor) -> float:
        logits = torch.cat([(a * positive).sum(1, keepdim=True), a @ queue.T], 1) / OWN["bingo"]["temperature"]
        return float(-logits.log_softmax(1)[:, 0].mean())

    mixed = target.share * nce(x, p) + (1 - target.share) * nce(x, p2)
    assert 0 < target.share < 1 and target.cross == 0
    assert found == pytest.approx((nce(q, p) + nce(mq, p2) + mixed) / 3, rel=1e-5)


def given(runs: TermRuns, name: str, step: int) -> tuple[Seen, Any, Tensor, float]:
    """What a term was given in a step, and the loss it made of it."""
    seen = runs.steps[step]
    return seen.student, seen.targets[name], seen.queues[name].double(), seen.raw[name]


def bingo_warm_epochs(runs: TermRuns) -> None:
    crosses = [step.targets["bingo"].cross for step in runs.steps if "bingo" in step.targets]
    assert crosses == [0.0, 0.0, 0.0, 0.5, 0.5, 0.5]  # of steps 2 to 7; epoch 1.5 is reached in step 5


def bingo_bags(runs: TermRuns) -> None:
    # other views than those of the images themselves, or the two would be alike
    target = runs.steps[3].targets["bingo"]
    assert (target.anchor - target.member).abs().amax(dim=1).min() > 0
    assert runs.method is not None


def disco_both_views(runs: TermRuns) -> None:
    assert all(len(step.targets["disco"]) == 1 for step in runs.steps if "disco" in step.targets)
    assert not any("key" in step.student.views for step in runs.steps)


def simreg_layers(runs: TermRuns) -> None:
    head = runs.terms["simreg"].get_submodule("head")
    assert [type(module) for module in head.children()] == [nn.Linear] * 2


def milestones(runs: TermRuns) -> None:
    rates = [row["lr"] for row in rows(runs.balanced) if row["kind"] == "train"]
    warm = [0.03 * (0.001 + 0.999 * step / 1.5) for step in (0, 1)]
    assert rates == pytest.approx([*warm, 0.03, *[0.03 * 0.3] * 3, *[0.03 * 0.09] * 3])


CASES: dict[str, Case] = {
    "optim.milestones": milestones,
    "optim.lr_factor": milestones,
    "moco.weight": contrastive_weight,
    "terms.measure_every": measure_every,
    "terms.seed.student_temperature": seed_temperatures,
    "terms.seed.teacher_temperature": seed_temperatures,
    "terms.compress.temperature": compress_temperature,
    "terms.bingo.temperature": bingo_temperature,
    "terms.bingo.warm_epochs": bingo_warm_epochs,
    "terms.bingo.bags": bingo_bags,
    "terms.disco.both_views": disco_both_views,
    "terms.simreg.layers": simreg_layers,
    **{f"terms.{name}.queue_size": queue_size(name) for name in ("seed", "compress", "bingo")},
}
for group, values in SCHEDULES.items():
    prefix = "mgd" if group == "mgd" else f"terms.{group}"
    CASES |= {f"{prefix}.{name}": weight_over_the_run(group) for name in values}
    CASES[f"{prefix}.balance"] = balance(group)
del CASES["mgd.weight"]  # has a case of its own

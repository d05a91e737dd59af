"""What is trained, by what, and how fast."""

import math

import pytest
import torch
from torch import nn

from tests.runs import rows
from tests.setting_cases.runs import Runs, case

CONSTANT_MARGIN = -math.sqrt(2 / math.pi)


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

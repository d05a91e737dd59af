"""Cases of the settings of `classify` that say from whom and how is learnt: mgd, kd, optim."""

import pytest
import torch
import torch.nn.functional as F

from mgd_ssl.classify_settings import ClassifyConfig
from mgd_ssl.networks.backbones import build_backbone
from tests.runs import rows
from tests.tasks.cases import Cases
from tests.tasks.classify_watched import Runs
from tests.tasks.runtime_cases import add_to

case = Cases(ClassifyConfig)
add_to(case)


@case
def mgd_weight(run: Runs) -> None:
    for name, weight in (("odd", 3e-3), ("plain", 1e-4)):
        for output, (_, _, distance) in zip(run(name).outputs, run(name).distilled, strict=True):
            assert distance > 0 and output.losses["mgd"].item() == pytest.approx(weight * distance)


@case
def mgd_stage_weights(run: Runs) -> None:
    for name, weights in (("odd", (1.0, 0.2, 0.3, 0.7)), ("plain", (0.125, 0.25, 0.5, 1.0))):
        maps, targets, found = run(name).distilled[0]  # the norms are as they start
        expected = 0.0
        for weight, student_map, target in zip(weights, maps, targets, strict=True):
            values = F.batch_norm(student_map.double(), None, None, training=True)
            clipped = torch.maximum(target.map.double(), target.margin.double()[:, None, None])
            counts = (values > clipped) | (target.map > 0)
            expected += weight * float(((values - clipped) ** 2)[counts].sum())
        assert found == pytest.approx(expected / len(maps[0]), rel=1e-4)


@case
def mgd_reducer(run: Runs) -> None:
    for name in ("odd", "plain"):
        for teacher_map, assignment, target in zip(*run(name).reduced[0], strict=True):
            group = teacher_map[:, assignment]  # [N, C_s, G, H, W]
            largest, smallest = group.amax(dim=2), group.amin(dim=2)
            absolute = torch.where(largest >= -smallest, largest, smallest)
            assert assignment.shape[1] > 1
            torch.testing.assert_close(target.map, largest if name == "odd" else absolute)


def closed_form(path: str, stage: int) -> torch.Tensor:
    """Margins from the BatchNorm of a stage's last block: the mean of what is negative."""
    weights = torch.load(path, weights_only=True)
    gamma, beta = (weights[f"layer{stage}.0.bn3.{kind}"].double() for kind in ("weight", "bias"))
    normal = torch.distributions.Normal(0.0, 1.0)
    return beta - gamma * normal.log_prob(beta / gamma).exp() / normal.cdf(-beta / gamma)


@case
def mgd_margin(run: Runs) -> None:
    for stage, margin in enumerate(run("plain").mgd.margins, start=1):
        torch.testing.assert_close(margin.double(), closed_form(str(run.teacher), stage), rtol=1e-4, atol=1e-5)
    _, (assignment, *_), (target, *_) = run("odd").reduced[0]
    values = torch.cat([maps[0] for maps in run("odd").teacher_maps]).double()  # of the update before the first step
    measured = torch.stack([channel[channel < 0].mean().nan_to_num() for channel in values.unbind(dim=1)])
    torch.testing.assert_close(target.margin.double(), measured[assignment].amax(dim=1), rtol=1e-3, atol=1e-4)


@case
def mgd_margins_from(run: Runs) -> None:
    """Stages 2 and 3 are matched."""
    for stage, margin in enumerate(run("other").mgd.margins, start=2):
        torch.testing.assert_close(margin.double(), closed_form(str(run.margins), stage), rtol=1e-4, atol=1e-5)


@case
def mgd_matching_images(run: Runs) -> None:
    assert sum(len(maps[0]) for maps in run("odd").teacher_maps) == 7


def matched_at(run: Runs, name: str) -> list[int]:
    return [row["step"] for row in rows(run(name).out) if row["kind"] == "matching"]


@case
def mgd_matching_epochs(run: Runs) -> None:
    assert matched_at(run, "odd") == [0, 3]  # of epochs of three steps


@case
def mgd_matching_every(run: Runs) -> None:
    assert (matched_at(run, "plain"), matched_at(run, "other")) == ([0, 3], [0, 6])


@case
def mgd_drop_remainder(run: Runs) -> None:
    assert run("odd").mgd.drop_remainder and not run("plain").mgd.drop_remainder


@case
def kd_weight(run: Runs) -> None:
    assert "kd" not in run("plain").outputs[0].losses
    assert kd_of(run) == pytest.approx(run("odd").outputs[0].losses["kd"].item(), rel=1e-3)


@case
def kd_temperature(run: Runs) -> None:
    assert kd_of(run, temperature=1.5) != pytest.approx(run("odd").outputs[0].losses["kd"].item(), rel=1e-2)


@torch.no_grad()
def kd_of(run: Runs, temperature: float = 3.0) -> float:
    """The divergence of the first step, half of it, from the networks as they begin."""
    seen = run("odd")
    network = build_backbone("thin_resnet10", 3).train()
    network.load_state_dict(seen.begun_with)
    images, _, targets, _ = seen.inputs[0]
    theirs, ours = F.softmax(targets["kd"] / temperature, 1), F.log_softmax(network(images) / temperature, 1)
    return 0.5 * float((theirs * (theirs.log() - ours)).sum(1).mean()) * temperature**2


# optimiser


@case
def optim_epochs(run: Runs) -> None:
    assert (len(run("odd").batches), len(run("plain").batches)) == (4 * 3, 2 * 3)


@case
def optim_batch_size(run: Runs) -> None:
    assert {len(batch.images) for batch in run("odd").batches} == {9}


def rates(run: Runs, name: str) -> list[float]:
    return [groups[0]["lr"] for groups in run(name).groups][::3]  # of every epoch


@case
def optim_lr(run: Runs) -> None:
    assert max(rates(run, "odd")) == pytest.approx(0.05) and max(rates(run, "plain")) == pytest.approx(0.1)


@case
def optim_warmup_epochs(run: Runs) -> None:
    assert rates(run, "odd")[:2] == pytest.approx([0.005, 0.05])


@case
def optim_milestones(run: Runs) -> None:
    assert rates(run, "odd")[2] < rates(run, "odd")[1] and rates(run, "odd")[3] < rates(run, "odd")[2]


@case
def optim_lr_factor(run: Runs) -> None:
    assert rates(run, "odd")[2:] == pytest.approx([0.05 * 0.3, 0.05 * 0.09])


@case
def optim_lr_schedule(run: Runs) -> None:
    assert rates(run, "plain") == pytest.approx([0.1, 0.1])  # before the first milestone


@case
def optim_lr_power(run: Runs) -> None:
    assert rates(run, "other") == pytest.approx([0.1 * (1 - epoch / 3) ** 2 for epoch in range(3)])


def options(run: Runs, name: str, key: str) -> list[set[float]]:
    """Values of an option of SGD in every group."""
    groups = run(name).groups
    return [{each[i][key] for each in groups} for i in range(len(groups[0]))]


@case
def optim_momentum(run: Runs) -> None:
    assert options(run, "odd", "momentum") == [{0.6}] * 2 and options(run, "plain", "momentum") == [{0.9}]


@case
def optim_nesterov(run: Runs) -> None:
    assert options(run, "odd", "nesterov") == [{False}] * 2 and options(run, "plain", "nesterov") == [{True}]


@case
def optim_weight_decay(run: Runs) -> None:
    assert options(run, "odd", "weight_decay")[0] == {3e-3} and options(run, "plain", "weight_decay") == [{1e-4}]


@case
def optim_decay_norms(run: Runs) -> None:
    assert options(run, "odd", "weight_decay") == [{3e-3}, {0}] and len(options(run, "plain", "weight_decay")) == 1


@case
def optim_label_smoothing(run: Runs) -> None:
    """Of mixed images, in the first step, from the student as it begins."""
    for name, smoothing in (("odd", 0.2), ("plain", 0.0)):
        seen = run(name)
        images, _, _, mixing = seen.inputs[0]
        labels = seen.batches[0].labels  # the run's own are written over
        network = build_backbone("thin_resnet10", 3).train()
        network.load_state_dict(seen.begun_with)
        share = 1.0 if mixing is None else float(mixing.share)
        other = labels if mixing is None else labels[mixing.order]
        soft = share * F.one_hot(labels, 3) + (1 - share) * F.one_hot(other, 3)
        soft = (1 - smoothing) * soft + smoothing / 3
        with torch.no_grad():
            expected = -(soft * network(images).log_softmax(1)).sum(1).mean()
        assert seen.outputs[0].losses["cross_entropy"].item() == pytest.approx(float(expected), rel=1e-4)


@case
def optim_mixup(run: Runs) -> None:
    shares = [float(mixing.share) for *_, mixing in run("odd").inputs]
    assert len(set(shares)) == len(shares) and all(0 < share < 1 for share in shares)
    assert all(mixing is None for *_, mixing in run("plain").inputs)


@case
def optim_ema(run: Runs) -> None:
    """What is left behind is the average, its first weights those after the first step."""
    left = torch.load(run("odd").out / "encoder.pt", weights_only=True)["conv1.weight"]
    averaged = run("odd").task.average.module.conv1.weight
    now = run("odd").student.get_parameter("conv1.weight")
    assert torch.equal(left, averaged) and not torch.allclose(left, now, atol=1e-5)
    distance = (left - now).norm() / (now - run("odd").begun_with["conv1.weight"]).norm()
    assert 0 < float(distance.detach()) < 1
    assert run("plain").task.average is None

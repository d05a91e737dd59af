"""Cases of the settings of `detect` that say what is learnt from, from whom, and how: data, mgd, optim."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgd_ssl.errors import TrainingError, UserError
from mgd_ssl.tasks.detection.detect import detect
from tests.runs import rows
from tests.tasks.detection.cases import case
from tests.tasks.detection.watched import Runs
from tests.tasks.watched import Seen

CONSTANT_MARGIN = -math.sqrt(2 / math.pi)  # of a BatchNorm of weight 1 and bias 0


@case
def log(run: Runs) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("mgd_ssl.run.sinks.sink.find_spec", lambda name: None)
        with pytest.raises(UserError, match="--log wandb needs wandb"):
            detect(**run.plainly("log", log=("wandb",)))


# data


@case
def data_root(run: Runs) -> None:
    train, val = run("plain").task.parts
    assert (train.images.root, val.images.root) == (run.root / "train2017", run.root / "val2017")
    assert train.path == run.root / "annotations" / "instances_train2017.json"
    assert val.path == run.root / "annotations" / "instances_val2017.json"


@case
def data_train_images(run: Runs) -> None:
    assert run("odd").task.parts.train.images.root == run.damaged / "train2017"


@case
def data_train_annotations(run: Runs) -> None:
    assert run("odd").task.parts.train.path == run.damaged / "annotations" / "instances_train2017.json"
    assert len(run("odd").task.parts.train.ids) == 25


@case
def data_val_images(run: Runs) -> None:
    assert run("odd").task.parts.val.images.root == run.damaged / "val2017"


@case
def data_val_annotations(run: Runs) -> None:
    assert run("odd").task.parts.val.path == run.damaged / "annotations" / "instances_val2017.json"
    assert len(run("odd").task.parts.val.ids) == 2


def sizes_seen(seen: Seen) -> set[tuple[int, ...]]:
    """Short and long sides of the images of all steps."""
    return {tuple(sorted(size)) for batch in seen.batches for size in batch.sizes.tolist()}


@case
def data_train_sides(run: Runs) -> None:
    """Images are of 60 times 72 pixels."""
    assert sizes_seen(run("plain")) == {(48, 58), (64, 77)}


@case
def data_longest_side(run: Runs) -> None:
    """A short side of 56 would make a long one of 67."""
    assert sizes_seen(run("odd")) == {(40, 48), (50, 60)}


@case
def data_val_side(run: Runs) -> None:
    """Images are matched as they are validated: 40 times 48 pixels, padded, of which the first stage has a half."""
    for name in ("odd", "plain"):
        maps = {tuple(sorted(maps[0].shape[2:])) for maps in run(name).teacher_maps}
        assert maps == {(32, 32)}  # 64 pixels either way
    assert {found.sum() for found in valid_of_matching(run, "odd")} == {20 * 24}


def valid_of_matching(run: Runs, name: str) -> list[np.ndarray]:
    """Where the maps of the first stage are of an image, one for each image that is matched."""
    side = 40 if name == "odd" else 48
    longer = side * 72 // 60
    found = []
    for maps in run(name).teacher_maps:
        height, width = maps[0].shape[2:]
        assert (height, width) == (32, 32)
        found.append(np.zeros((height, width), dtype=bool))
        found[-1][: side // 2, : longer // 2] = True
    return found


@case
def data_workers(run: Runs) -> None:
    assert (run.two_of_each().children, run("plain").children) == (2, 0)


@case
def data_max_unreadable(run: Runs) -> None:
    assert run("odd").task.session.step == 6  # with one unreadable image of 25
    skipped = (run("odd").out / "skipped_train.jsonl").read_text()
    assert "000000000007.jpg" in skipped
    data = {**run.settings("odd")["data"], "max_unreadable": 0.01}
    with pytest.raises(TrainingError, match="unreadable"):
        detect(**{**run.settings("odd"), "out": run.folder / "strict", "data": data, "teacher": None, "mgd": {},
                  "teacher_mean": None, "teacher_std": None})  # fmt: skip


@case
def data_background(run: Runs) -> None:
    for part in run("odd").task.parts:
        assert part.images.decoding.background == "#102030"
    assert run("plain").task.parts.train.images.decoding.background == "white"


@case
def data_max_pixels(run: Runs) -> None:
    for part in run("odd").task.parts:
        assert part.images.decoding.max_pixels == 12345
    assert run("plain").task.parts.train.images.decoding.max_pixels == 100_000_000


# distillation


@case
def mgd_weight(run: Runs) -> None:
    for name, weight in (("odd", 1e-7), ("plain", 2.5e-9)):
        seen = run(name)
        for output, (_, _, distance) in zip(seen.outputs, seen.distilled, strict=True):
            assert distance > 0 and output.losses["mgd"].item() == pytest.approx(weight * distance)
            others = sum(value.item() for key, value in output.losses.items() if key != "mgd")
            assert output.total.item() == pytest.approx(others + weight * distance)


@case
def mgd_stage_weights(run: Runs) -> None:
    """Stage 2 is left out where its weight is 0."""
    for name, weights in (("odd", (1.0, 3.0, 7.0)), ("plain", (1.0, 1.0, 10.0, 10.0))):
        maps, targets, found = run(name).distilled[0]  # the norms are as they start
        expected = 0.0
        for weight, student_map, target in zip(weights, maps, targets, strict=True):
            values = F.group_norm(student_map.double(), math.gcd(32, student_map.shape[1] // 2))
            clipped = torch.maximum(target.map.double(), target.margin.double()[:, None, None])
            counts = (values > clipped) | (target.map > 0)
            if target.valid is not None:
                counts &= target.valid
            expected += weight * float(((values - clipped) ** 2)[counts].sum())
        assert found == pytest.approx(expected / len(maps[0]), rel=1e-3)
    channels = [
        run("odd").task.module.student.body.get_submodule(f"layer{stage}.0.conv2").out_channels for stage in (1, 3, 4)
    ]
    assert [map_.shape[1] for map_ in run("odd").distilled[0][0]] == channels


def reduced_of(run: Runs, name: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Groups of teacher channels [N, C_s, G, H, W], what they became, and where it counts, of the first step."""
    found = []
    for teacher_map, assignment, target in zip(*run(name).reduced[0], strict=True):
        found.append((teacher_map[:, assignment], target.map, assignment))
    return found


@case
def mgd_reducer(run: Runs) -> None:
    for name in ("odd", "plain"):
        for group, reduced, assignment in reduced_of(run, name):
            assert assignment.shape[1] > 1
            largest, smallest = group.amax(dim=2), group.amin(dim=2)
            absolute = torch.where(largest >= -smallest, largest, smallest)
            torch.testing.assert_close(reduced, largest if name == "odd" else absolute)


@case
def mgd_margin(run: Runs) -> None:
    for margin in run("other").mgd.margins:
        torch.testing.assert_close(margin, torch.full_like(margin, CONSTANT_MARGIN))
    weights = torch.load(run.teacher / "encoder.pt", weights_only=True)
    gamma, beta = (weights[f"backbone.body.layer1.0.bn3.{kind}"].double() for kind in ("weight", "bias"))
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = beta - gamma * normal.log_prob(beta / gamma).exp() / normal.cdf(-beta / gamma)
    torch.testing.assert_close(run("plain").mgd.margins[0].double(), expected, rtol=1e-4, atol=1e-5)
    # measured where there is image, at the update before the first step
    images, valid = run("odd").teacher_maps, valid_of_matching(run, "odd")
    channels = [
        np.concatenate([maps[0][0, channel].numpy()[inside] for maps, inside in zip(images, valid, strict=True)])
        for channel in range(8)
    ]
    measured = [values[values < 0].mean() for values in channels]
    _, (assignment, *_), targets = run("odd").reduced[0]
    for channel, margin in enumerate(targets[0].margin.tolist()):
        mine = [measured[taken] for taken in assignment[channel].tolist() if taken < 8]
        if len(mine) == assignment.shape[1]:
            assert margin == pytest.approx(max(mine), rel=1e-3)


@case
def mgd_padding(run: Runs) -> None:
    seen = run("odd")
    for batch, (_, targets, _) in zip(seen.batches, seen.distilled, strict=True):
        edges = batch.images.shape[1:3]
        for target in targets:
            assert target.valid is not None
            height, width = target.map.shape[2:]
            for inside, (h, w) in zip(target.valid, batch.sizes.tolist(), strict=True):
                rows_, columns = (
                    math.ceil(size * n / edge) for size, n, edge in ((h, height, edges[0]), (w, width, edges[1]))
                )
                expected = torch.zeros(height, width, dtype=torch.bool)
                expected[:rows_, :columns] = True
                assert torch.equal(inside[0], expected)
            assert not (target.map * ~target.valid).any()
    assert all(target.valid is None for _, targets, _ in run("plain").distilled for target in targets)


@case
def mgd_matching_images(run: Runs) -> None:
    assert len(run("odd").teacher_maps) == 7  # one an image
    assert len(run("plain").teacher_maps) == 14  # all there are


@case
def mgd_matching_at(run: Runs) -> None:
    """Shares of 6 and of 4 steps; the default ones are 0, 0.06, 0.11, 0.17, 0.34 and 0.69."""
    for name, steps in (("odd", [0, 3]), ("plain", [0, 1, 3])):
        assert [row["step"] for row in rows(run(name).out) if row["kind"] == "matching"] == steps


# optimiser


@case
def optim_steps(run: Runs) -> None:
    assert (len(run("odd").outputs), len(run("plain").outputs)) == (6, 4)
    how = run.plainly("unsaid", optim={"batch_size": 4})
    assert run.begun("unsaid", optim=how["optim"]).task.total_steps == round(90_000 * 16 / 117_266 * 14 / 4)


@case
def optim_batch_size(run: Runs) -> None:
    assert {len(batch.images) for batch in run("odd").batches} == {5}


def rates(run: Runs, name: str) -> list[float]:
    return [groups[0]["lr"] for groups in run(name).groups]


@case
def optim_lr(run: Runs) -> None:
    assert max(rates(run, "odd")) == pytest.approx(0.002) and max(rates(run, "plain")) == pytest.approx(0.01)


@case
def optim_warmup(run: Runs) -> None:
    """0.34 of 6 steps are two, from a thousandth of the peak."""
    assert rates(run, "odd")[:3] == pytest.approx([0.002 * 0.001, 0.002 * (0.001 + 0.999 / 2), 0.002])
    assert rates(run, "plain")[:3] == pytest.approx([0.01] * 3)


@case
def optim_milestones(run: Runs) -> None:
    """At half of 6 steps and at 0.8 of them; at two thirds and at 8 ninths of 4."""
    assert rates(run, "odd")[2:] == pytest.approx([0.002, 0.0002, 0.0002, 0.00002])
    assert rates(run, "plain")[2:] == pytest.approx([0.01, 0.001])


def options(run: Runs, name: str, key: str) -> list[set[float]]:
    """Values of an option of SGD, of the weights and of the norms."""
    return [{groups[i][key] for groups in run(name).groups} for i in range(2)]


@case
def optim_momentum(run: Runs) -> None:
    assert options(run, "odd", "momentum") == [{0.5}, {0.5}] and options(run, "plain", "momentum") == [{0.9}, {0.9}]


@case
def optim_nesterov(run: Runs) -> None:
    assert options(run, "odd", "nesterov") == [{False}] * 2 and options(run, "plain", "nesterov") == [{True}] * 2
    with pytest.raises(ValueError, match="nesterov is true and momentum 0"):
        run.begun("nesterov", optim={"momentum": 0.0})


@case
def optim_weight_decay(run: Runs) -> None:
    """Of norms it is 0."""
    assert options(run, "odd", "weight_decay") == [{0.25}, {0}] and options(run, "plain", "weight_decay") == [
        {1e-4},
        {0},
    ]

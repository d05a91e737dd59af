"""Every setting of `detect` reaches what it sets: seen in real runs, not in the objects that are handed around.

A setting without a case fails `test_settings_and_cases_are_the_same`: add a function named after it below.
"""

import re

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.ops import FrozenBatchNorm2d

from mgd_ssl.config import DEVIATION, MEAN
from mgd_ssl.errors import UserError
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.tasks.detection.coco import Category
from mgd_ssl.tasks.detection.config import DetectConfig
from mgd_ssl.tasks.detection.detect import detect
from mgd_ssl.tasks.detection.weights import load_teacher
from tests.tasks.detection import learning_cases, program_cases  # noqa: F401 (their cases come into case)
from tests.tasks.detection.cases import case
from tests.tasks.detection.program_cases import steps_of
from tests.tasks.detection.watched import Runs
from tests.tasks.watched import Seen


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("settings"))


# the run


@case
def out(run: Runs) -> None:
    names = {path.name for path in run("odd").out.iterdir()}
    assert {"config.json", "metrics.jsonl", "encoder.pt", "result.json", "detections.json"} <= names


def shapes_of_body(state: dict[str, Tensor], prefix: str = "") -> dict[str, torch.Size]:
    found = {key.removeprefix(prefix): v.shape for key, v in state.items() if key.startswith(prefix)}
    return {key: shape for key, shape in found.items() if not key.startswith("fc.") and "num_batches" not in key}


@case
def student(run: Runs) -> None:
    for seen in (run("plain"), run.begun("wider", student="thin_resnet14", optim={"steps": 1, "batch_size": 4})):
        arch = "thin_resnet10" if seen.out.name == "plain" else "thin_resnet14"
        expected = shapes_of_body(build_backbone(arch).state_dict())
        assert shapes_of_body(seen.begun_with, "backbone.body.") == expected


@case
def backbone(run: Runs) -> None:
    weights = torch.load(run.backbone, weights_only=True)
    for key, value in run("odd").begun_with.items():
        name = key.removeprefix("backbone.body.")
        if name != key and name in weights and not name.endswith("num_batches_tracked"):
            assert torch.equal(value, weights[name]), key
    assert not torch.equal(run("plain").begun_with["backbone.body.conv1.weight"], weights["conv1.weight"])


def teachers_layer4(run: Runs, images: Tensor) -> Tensor:
    """What torchvision's blocks make of the teacher's file."""
    state = torch.load(run.teacher / "encoder.pt", weights_only=True)
    body = {key.removeprefix("backbone.body."): v for key, v in state.items() if key.startswith("backbone.body.")}
    network = build_backbone("thin_resnet14").eval()
    network.fc = nn.Identity()
    network.load_state_dict(body)
    found: list[Tensor] = []
    network.get_submodule("layer4").register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        network(images)
    return found[0]


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


PIXELS = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@case
def teacher(run: Runs) -> None:
    network = run("plain").task.teacher
    assert network is not None and run.begun("untaught").task.teacher is None
    images = normalised(PIXELS, MEAN, DEVIATION)
    torch.testing.assert_close(network(images)[3].relu(), teachers_layer4(run, images), rtol=1e-3, atol=1e-4)


@case
def teacher_mean(run: Runs) -> None:
    network = run("odd").task.teacher
    assert network is not None
    found = network(normalised(PIXELS, MEAN, DEVIATION))[-1].relu()
    expected = teachers_layer4(run, normalised(PIXELS, (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="teacher_mean and teacher_std belong together"):
        DetectConfig(**run.plainly("x", teacher=run.teacher, teacher_mean=(0.5, 0.5, 0.5)))


@case
def teacher_std(run: Runs) -> None:
    config = DetectConfig(**run.plainly("x", teacher=run.teacher, teacher_mean=MEAN, teacher_std=(0.5, 0.6, 0.7)))
    network = load_teacher(config, run("plain").task.parts.train.categories)
    assert network is not None
    expected = teachers_layer4(run, normalised(PIXELS, MEAN, (0.5, 0.6, 0.7)))
    found = network(normalised(PIXELS, MEAN, DEVIATION))[3].relu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@case
def teacher_arch(run: Runs) -> None:
    with pytest.raises(UserError, match="does not fit resnet50"):
        detect(**run.plainly("arch", teacher=run.teacher, teacher_arch="resnet50"))


@case
def teacher_of_other_classes(run: Runs) -> None:
    three = [Category(number, str(number)) for number in (1, 2, 5)]
    how = run.plainly("classes", teacher=run.teacher)
    with pytest.raises(UserError, match="detects 2 classes and the data has 3"):
        load_teacher(DetectConfig(**how), three)
    assert load_teacher(DetectConfig(**how, teacher_of_other_classes=True), three) is not None


@case
def seed(run: Runs) -> None:
    first, again, other = run("plain"), run.begun("seed_0"), run.begun("seed_1", seed=1)
    for key, value in first.begun_with.items():
        assert torch.equal(value, again.begun_with[key]), key
    assert torch.equal(first.batches[0].indices, again.batches[0].indices)
    assert not torch.equal(first.batches[0].indices, other.batches[0].indices)
    for key in ("backbone.body.conv1.weight", "backbone.fpn.inner_blocks.0.0.weight"):
        assert not torch.equal(first.begun_with[key], other.begun_with[key])


@case
def evaluate_every(run: Runs) -> None:
    assert (steps_of(run("odd"), "average_precision"), steps_of(run("plain"), "average_precision")) == ([4, 6], [4])


# the detector


@case
def network_kind(run: Runs) -> None:
    assert isinstance(run("other").task.module.student.network, FasterRCNN)
    assert isinstance(run("plain").task.module.student.network, RetinaNet)
    assert {"objectness", "box_reg"} < run("other").outputs[0].losses.keys()


def norms_of(seen: Seen) -> dict[str, type]:
    kinds = (nn.BatchNorm2d, nn.GroupNorm, FrozenBatchNorm2d)
    return {
        name: type(module)
        for name, module in seen.task.module.student.body.named_modules()
        if isinstance(module, kinds)
    }


@case
def network_norm(run: Runs) -> None:
    assert set(norms_of(run("plain")).values()) == {FrozenBatchNorm2d}
    assert set(norms_of(run("other")).values()) == {nn.GroupNorm}
    assert norms_of(run("odd"))["bn1"] is nn.BatchNorm2d


@case
def network_group_norm_last_blocks(run: Runs) -> None:
    """thin_resnet10 has one block a stage, which is the last one."""
    for name, kind in norms_of(run("odd")).items():
        assert kind is (nn.GroupNorm if name.startswith("layer") else nn.BatchNorm2d), name
    how = {"norm": "batch", "group_norm_last_blocks": True, "frozen_stages": 0, "pyramid_channels": 16}
    wider = run.begun("last_blocks", student="resnet18", network=how)
    for name, kind in norms_of(wider).items():
        assert kind is (nn.GroupNorm if re.match(r"layer\d\.1\.", name) else nn.BatchNorm2d), name


@case
def network_frozen_stages(run: Runs) -> None:
    for name, stages in (("odd", ("conv1", "bn1", "layer1")), ("plain", ("conv1", "bn1")), ("other", ())):
        still = {key for key, value in run(name).task.module.student.body.named_parameters() if not value.requires_grad}
        every = (
            {key for key, _ in run(name).task.module.student.body.named_parameters() if key.startswith(stages)}
            if stages
            else set()
        )
        assert still == every
        left, before = run.detector_of(run(name)), run(name).begun_with
        moved = {key for key, value in left.items() if not torch.equal(value, before[key])}
        assert (
            not any(f"backbone.body.{key}" in moved for key in still) and "backbone.body.layer4.0.conv1.weight" in moved
        )


@case
def network_pyramid_channels(run: Runs) -> None:
    for name, channels in (("odd", 24), ("plain", 16)):
        assert run(name).begun_with["backbone.fpn.layer_blocks.0.0.weight"].shape[:2] == (channels, channels)
        assert run(name).begun_with["head.classification_head.cls_logits.weight"].shape[1] == channels


@case
def network_norm_heads(run: Runs) -> None:
    for name, there in (("odd", True), ("plain", False)):
        found = [m for m in run(name).task.module.student.network.head.modules() if isinstance(m, nn.GroupNorm)]
        assert len(found) == (8 if there else 0)  # four convolutions in each of two heads


@case
def network_loss_normaliser(run: Runs) -> None:
    """The moving average of anchors that hold an object begins at 50 an image."""
    assert run("odd").task.module.student.positives == 50
    assert run("plain").task.module.student.positives != 50


def test_settings_and_cases_are_the_same() -> None:
    assert sorted(case) == sorted(case.wanted()), "add a case for every new setting, above"


@pytest.mark.parametrize("key", case)
def test_setting_reaches_what_it_sets(key: str, run: Runs) -> None:
    case[key](run)

"""Students of any family beside a ResNet, by name: MoCo and MGD take a step and every weight is trained."""

from pathlib import Path

import pytest
import torch

from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.weights import load_backbone
from tests.runs import stepper_for, tiny


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ResNet-50 whose BatchNorms have seen something."""
    torch.manual_seed(0)
    state = build_backbone("resnet50").state_dict()
    for name, value in state.items():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("resnet50") / "resnet50.pt"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("student", ["mobilenet_v3_small", "efficientnet_b0", "timm.mobilenetv3_small_050"])
def test_a_student_of_another_family_takes_a_step(
    student: str, resnet50: Path, image_folder: Path, tmp_path: Path
) -> None:
    settings = tiny(
        image_folder, tmp_path / "run", student=student, teacher=resnet50,
        data={"image_size": 64}, optim={"batch_size": 4, "lr": 0.01}, mgd={"matching_images": 4},
    )  # fmt: skip
    stepper, (batch,) = stepper_for(settings, 1)
    before = {name: value.detach().clone() for name, value in stepper.module.named_parameters()}
    output = stepper.step(batch)
    assert output.losses["mgd"] > 0 and output.total.isfinite()
    trained = {name for name, value in stepper.module.named_parameters() if value.requires_grad}
    unmoved = {name for name in trained if torch.equal(stepper.module.get_parameter(name), before[name])}
    assert len(unmoved) < len(trained) / 20, unmoved  # a few gradients are zero

    _, encoder = stepper.task.finish()
    torch.save(encoder, tmp_path / "encoder.pt")
    backbone, report = load_backbone(tmp_path / "encoder.pt", student)
    assert report.arch == student
    assert all(torch.equal(value, encoder[name]) for name, value in backbone.state_dict().items())

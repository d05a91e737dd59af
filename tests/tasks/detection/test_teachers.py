"""Teachers of a detection: detectron2's own checkpoints, and those with an input of another normalisation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mgd_ssl.config import DEVIATION, MEAN
from mgd_ssl.errors import UserError
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.normalisation import Normalisation, take_input_of
from mgd_ssl.tasks.detection.coco import Category
from mgd_ssl.tasks.detection.config import DetectConfig
from mgd_ssl.tasks.detection.detectron2_file import load_detectron2
from mgd_ssl.tasks.detection.padding import padded_for
from mgd_ssl.tasks.detection.weights import load_teacher
from tests.tasks.detection.test_detect import detectron2_names, write_pickle

OWN = ((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
TWO = [Category(1, "one"), Category(2, "two")]


def trained(seed: int, arch: str = "resnet18") -> nn.Module:
    """A network whose BatchNorms look trained."""
    torch.manual_seed(seed)
    network = build_backbone(arch).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
    return network


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def test_detectron2s_own_checkpoint_is_a_teacher(tmp_path: Path) -> None:
    network = trained(0)
    state = {key: torch.from_numpy(value) for key, value in detectron2_names(network.state_dict()).items()}
    state |= {"head.cls_score.bias": torch.zeros(9 * 2), "backbone.fpn_lateral3.weight": torch.ones(2, 2, 1, 1)}
    path = tmp_path / "model_final.pth"
    torch.save({"model": state, "optimizer": {"state": {}}, "iteration": 89_999}, path)
    teacher = load_teacher(DetectConfig(out=tmp_path, teacher=path), TWO)
    assert teacher is not None and teacher.report is not None
    assert (teacher.report.arch, teacher.report.layout) == ("resnet18", "detectron2")
    network.fc = nn.Identity()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images)[3].relu().mean(dim=(2, 3)), network(images))
    with pytest.raises(UserError, match="detects 2 classes and the data has 3"):
        load_teacher(DetectConfig(out=tmp_path, teacher=path), [*TWO, Category(3, "three")])


@pytest.mark.parametrize("kind", ["torchvision", "detectron2"])
def test_a_teacher_gets_the_input_it_was_trained_with(tmp_path: Path, kind: str) -> None:
    network = trained(1)
    path = tmp_path / "teacher.pth"
    if kind == "detectron2":
        write_pickle(path := tmp_path / "teacher.pkl", detectron2_names(network.state_dict()))
    else:
        torch.save(network.state_dict(), path)
    mean, std = OWN
    teacher = load_teacher(DetectConfig(out=tmp_path, teacher=path, teacher_mean=mean, teacher_std=std), TWO)
    assert teacher is not None and teacher.report is not None
    assert any("0.2 0.3 0.4" in note and "as it was set" in note for note in teacher.report.notes())
    network.fc, pixels = nn.Identity(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found = teacher(normalised(pixels, MEAN, DEVIATION))[3].relu().mean(dim=(2, 3))
        torch.testing.assert_close(found, network(normalised(pixels, *OWN)), rtol=1e-4, atol=1e-5)


def test_padding_is_zero_in_the_teachers_normalisation() -> None:
    """As in training, where images are normalised first and padded then."""
    pixels, sizes = torch.rand(2, 3, 32, 32), torch.tensor([[32, 20], [9, 32]])
    ours, theirs = torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32)
    for i, (height, width) in enumerate(sizes.tolist()):
        image = pixels[i, :, :height, :width]
        ours[i, :, :height, :width] = normalised(image, MEAN, DEVIATION)
        theirs[i, :, :height, :width] = normalised(image, *OWN)
    network = nn.Sequential(nn.Identity())
    take_input_of(network, Normalisation(*OWN))
    torch.testing.assert_close(network(padded_for(Normalisation(*OWN), ours, sizes)), theirs, rtol=1e-5, atol=1e-6)
    assert padded_for(Normalisation(), ours, sizes) is ours


def test_the_input_of_caffe2s_networks_is_known(tmp_path: Path) -> None:
    folded = detectron2_names(build_backbone("resnet18").state_dict())  # running means of 0
    path = write_pickle(tmp_path / "a.pkl", {key: np.asarray(value) for key, value in folded.items()})
    with pytest.raises(UserError, match=r"Caffe2's weights, whose input is known: leave teacher_mean"):
        load_detectron2(path, normalisation=Normalisation(*OWN))

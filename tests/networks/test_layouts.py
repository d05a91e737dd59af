"""Files of other programs: what is read of them, what is left, and that the network says what theirs said."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mgd_ssl.errors import UserError
from mgd_ssl.networks.layouts import LAYOUTS, WHY_NOT
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.networks.weights import Asked, load_trained
from tests.networks.foreign import PROGRAMS, WIDTH, backbone, mlp, moco_v2, moco_v3, plain, swav

LAYOUT_OF = {
    "moco_v1": "MoCo v1/v2",
    "moco_v2": "MoCo v1/v2",
    "moco_v3": "MoCo v3",
    "swav": "SwAV",
    "simsiam": "SimSiam",
    "barlow_twins": "Barlow Twins, VICReg",
    "vicreg": "Barlow Twins, VICReg",
    "dino": "DINO",
    "vissl": "VISSL",
    "plain": "plain",
}
UNUSED = {  # beside the projection head
    "moco_v1": {"encoder_k", "queue"},
    "moco_v2": {"encoder_k", "queue", "queue_ptr"},
    "moco_v3": {"momentum_encoder", "predictor"},
    "swav": {"prototypes"},
    "simsiam": {"predictor"},
    "barlow_twins": {"bn"},
    "vicreg": set[str](),
    "dino": {"student", "head", "dino_loss"},
    "vissl": {"heads"},
    "plain": set[str](),
}


def save(folder: Path, content: Any) -> Path:
    path = folder / "weights.pth.tar"
    torch.save(content, path)
    return path


def images(size: int = 48) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(3))


def num_tensors(content: Any) -> int:
    """Of all that can be weights: an optimiser's state and numbers are none."""
    if isinstance(content, dict):
        return sum(num_tensors(value) for name, value in content.items() if name != "optimizer")
    return int(isinstance(content, Tensor))


@pytest.mark.parametrize("program", PROGRAMS)
@torch.no_grad()
def test_a_network_from_a_file_says_what_its_program_says(tmp_path: Path, program: str) -> None:
    foreign = PROGRAMS[program]()
    trained = load_trained(save(tmp_path, foreign.checkpoint), Asked(head="any"))
    feature = foreign.feature(images())
    assert torch.equal(trained.backbone(images()), feature)
    assert (trained.head is None) == (foreign.embedding is None)
    if trained.head is not None and foreign.embedding is not None:
        assert torch.equal(trained.head(feature), foreign.embedding(feature))
    assert not any(module.training for module in trained.backbone.modules())


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_tensor_of_a_file_is_accounted_for(tmp_path: Path, program: str) -> None:
    foreign = PROGRAMS[program]()
    path = save(tmp_path, foreign.checkpoint)
    trained = load_trained(path, Asked(head="any"))
    report, in_head = trained.report, 0 if trained.head is None else len(trained.head.state_dict())
    assert (report.layout, report.arch) == (LAYOUT_OF[program], "thin_resnet10")
    assert set(report.unused) == UNUSED[program]
    assert report.num_loaded + in_head + sum(report.unused.values()) == num_tensors(foreign.checkpoint)
    assert report.num_loaded == len(backbone().state_dict())
    told = str(report)
    assert all(f"{group} ({count}" in told for group, count in report.unused.items())
    assert all(WHY_NOT[group] in told for group in report.unused if group in WHY_NOT)
    if trained.head is not None:
        assert report.head[0] == WIDTH and f"projection head {'-'.join(map(str, report.head))}" in told
        plainly = load_trained(path).report  # without asking for the head its tensors are among the unused
        assert plainly.head == () and sum(plainly.unused.values()) == sum(report.unused.values()) + in_head


def test_every_layout_is_tried() -> None:
    assert {layout.name for layout in LAYOUTS} == set(LAYOUT_OF.values()) - {"plain"}


def test_a_teacher_has_its_head_when_it_is_asked_for(tmp_path: Path) -> None:
    foreign = moco_v2()
    path = save(tmp_path, foreign.checkpoint)
    assert Teacher.load(path).head is None
    teacher = Teacher.load(path, with_head=True)
    teacher.fold()
    maps, embedding, feature = teacher.seen(images())
    assert foreign.embedding is not None and embedding is not None and len(maps) == 4
    torch.testing.assert_close(feature, foreign.feature(images()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedding, foreign.embedding(foreign.feature(images())), rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.train().head.training  # type: ignore[union-attr]


@pytest.mark.parametrize("program", ["plain", "vissl"])
def test_a_file_without_a_head_is_refused_where_one_is_needed(tmp_path: Path, program: str) -> None:
    path = save(tmp_path, PROGRAMS[program]().checkpoint)
    with pytest.raises(UserError, match=r"weights\.pth\.tar holds no projection head that is known, .*step_\*\.pt"):
        Teacher.load(path, with_head=True)


def test_a_classifier_is_no_projection_head(tmp_path: Path) -> None:
    state = {**backbone().state_dict(), **nn.Linear(WIDTH, 10).state_dict(prefix="fc.")}
    with pytest.raises(UserError, match="holds no projection head"):
        Teacher.load(save(tmp_path, state), with_head=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"0.weight": torch.zeros(24, 3, 3)}, r"0\.weight"),
        ({"lstm.weight": torch.zeros(2)}, r"lstm\.weight"),
        ({"3.weight": torch.zeros(8, 25)}, r"layers of \[\(128, 24\), \(25, 8\)\]"),
        ({"1.bias": torch.zeros(23)}, r"1\.bias"),
        ({"0.weight": torch.full((24, WIDTH), torch.nan)}, "not finite"),
        ({"0.weight": torch.zeros(24, WIDTH, dtype=torch.int32)}, "int32"),
    ],
)
def test_a_head_that_cannot_be_one_is_a_sentence(tmp_path: Path, change: dict[str, Tensor], told: str) -> None:
    foreign = swav()
    broken = {**foreign.checkpoint, **{f"module.projection_head.{name}": value for name, value in change.items()}}
    path = save(tmp_path, broken)
    with pytest.raises(UserError, match=told):
        Teacher.load(path, with_head=True)
    assert Teacher.load(path).head is None  # the backbone is whole


def test_a_missing_tensor_is_found_in_every_layout(tmp_path: Path) -> None:
    state = moco_v3().checkpoint["state_dict"]
    del state["module.base_encoder.layer3.0.bn1.bias"]
    with pytest.raises(UserError, match=r"1 tensors are missing \(first: layer3\.0\.bn1\.bias\)"):
        load_trained(save(tmp_path, {"state_dict": state}))


def test_two_backbones_of_no_known_program_are_ambiguous(tmp_path: Path) -> None:
    both = {**backbone(0).state_dict(prefix="backbone."), **backbone(1).state_dict(prefix="other.")}
    with pytest.raises(UserError, match=r"several networks \('backbone\.', 'other\.'\)"):
        load_trained(save(tmp_path, {**both, **mlp(WIDTH, 8, 8).state_dict(prefix="projector.")}))


def test_arguments_of_a_program_are_read_and_its_code_is_not(tmp_path: Path) -> None:
    content = {**plain().checkpoint, "args": argparse.Namespace(lr=0.1, folder="out")}
    assert load_trained(save(tmp_path, content)).report.arch == "thin_resnet10"
    with pytest.raises(UserError, match="could run code"):
        load_trained(save(tmp_path, {**content, "args": argparse.Namespace(folder=tmp_path)}))

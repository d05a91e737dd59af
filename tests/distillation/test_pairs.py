"""Which maps are matched: by the number of the stage, and by module names."""

import pytest
import torch
from torch import nn

from mgd_ssl.distillation.pairs import Named, pair
from mgd_ssl.errors import UserError
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.stages import StageTap
from mgd_ssl.networks.teacher import Teacher

SIZE = 64


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher(build_backbone("resnet18"))


def names(taps: list[StageTap]) -> list[tuple[int, str]]:
    return [(tap.stage, tap.relu) for tap in taps]


def test_stages_of_one_number_are_partners(teacher: Teacher) -> None:
    taps = pair(build_backbone("shufflenet_v2_x0_5"), teacher, Named(), SIZE)
    assert names(taps) == [(2, "relu2"), (3, "relu3"), (4, "relu4")]
    assert names(teacher.stages) == [(2, "layer2.1.relu"), (3, "layer3.1.relu"), (4, "layer4.1.relu")]
    taps = pair(build_backbone("resnet18"), teacher, Named(), SIZE, (1, 0, 0, 0.5))
    assert names(taps) == names(teacher.stages) == [(1, "layer1.1.relu"), (4, "layer4.1.relu")]


def test_named_modules_take_the_stage_of_their_size(teacher: Teacher) -> None:
    student = build_backbone("shufflenet_v2_x0_5")
    taps = pair(student, teacher, Named(student=("relu3", "conv5")), SIZE)  # after the ReLU, as published
    assert [(tap.stage, tap.relu, tap.channels) for tap in taps] == [(3, "relu3", 96), (4, "conv5", 192)]
    assert names(teacher.stages) == [(3, "layer3.1.relu"), (4, "layer4.1.relu")]
    maps = teacher(torch.zeros(1, 3, SIZE, SIZE))
    assert [list(map_.shape[1:]) for map_ in maps] == [[256, 4, 4], [512, 2, 2]]

    taps = pair(build_backbone("resnet18"), teacher, Named(teacher=("layer3.0.relu",)), SIZE)
    assert names(taps) == [(3, "layer3.1.relu")] and names(teacher.stages) == [(3, "layer3.0.relu")]


def test_modules_named_for_both_are_paired_in_order(teacher: Teacher) -> None:
    named = Named(("layer2.0.relu", "layer2.1.relu"), ("layer2.1.relu", "layer2.0.relu"))
    taps = pair(build_backbone("resnet18"), teacher, named, SIZE)
    assert names(taps) == [(3, "layer2.0.relu"), (4, "layer2.1.relu")]
    assert names(teacher.stages) == [(3, "layer2.1.relu"), (4, "layer2.0.relu")]


def test_margins_are_those_of_the_norm_before_a_named_relu() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.SiLU()
    )
    teacher = Teacher(network, stages=[])
    taps = pair(network, teacher, Named(("2", "5"), ("2", "5")), 8)
    assert [tap.norm for tap in taps] == ["1", ""]  # a ReLU's margin means nothing before another activation
    with pytest.raises(UserError, match=r"enters the teacher's 5, so its margins are not known: set mgd.margin"):
        teacher.margins()


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (Named(student=("layer9",)), "'layer9' is no module of the student, did you mean 'layer"),
        (
            Named(teacher=("layer4.1.relo",)),
            "'layer4.1.relo' is no module of the teacher, did you mean 'layer4.1.relu'",
        ),
        (Named(student=("fc",)), "what enters fc of the student is no map [N, C, H, W]"),
        (Named(("layer1.0.relu",), ("layer1.0.relu", "layer2.0.relu")), "names 1 modules and teacher_taps 2"),
        (
            Named(student=("conv1",)),
            "conv1 is given a map of 64 x 64 at data.image_size 64, and no stage of the teacher",
        ),
        (Named(student=("layer3.0.relu", "layer3.1.relu")), "two of the named modules have maps of one size"),
        (
            Named(("layer1.1.relu", "layer3.0.relu"), ("layer1.1.relu", "layer4.1.relu")),
            "in stage 4 (4 x 4 and 2 x 2; in the teacher layer3.1.relu has 4 x 4); stages that fit: 3: name modules",
        ),
    ],
)
def test_names_that_do_not_fit_are_told_with_those_that_would(teacher: Teacher, named: Named, told: str) -> None:
    with pytest.raises(UserError) as caught:
        pair(build_backbone("resnet18"), teacher, named, SIZE)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_map_of_one_position_leaves_nothing_to_match(teacher: Teacher) -> None:
    with pytest.raises(UserError, match=r"the maps of stage 4 are 1 x 1 at data\.image_size 32"):
        pair(build_backbone("resnet18"), teacher, Named(), 32)


def test_a_network_without_such_maps_is_refused(teacher: Teacher) -> None:
    with pytest.raises(UserError, match=r"ConvNeXt has no map before an activation .* \(mgd.weight 0\)"):
        pair(build_backbone("convnext_tiny"), teacher, Named(), SIZE)

"""Backbones by name, and where they are tapped."""

import sys

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import Bottleneck

from mgd_ssl.errors import UserError
from mgd_ssl.networks.backbones import BACKBONES, build_backbone, build_encoder, feature_width, stage_taps, trunk
from mgd_ssl.networks.taps import FeatureTaps

STAGES = ["layer1", "layer2", "layer3", "layer4"]


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(name)


RESNETS = [name for name in BACKBONES if "resne" in name]


@pytest.mark.parametrize("name", RESNETS)
def test_taps_are_the_last_block_of_each_stage(name: str) -> None:
    network = on_meta(name)
    channels = []
    for stage in STAGES:
        module = network.get_submodule(stage)
        module.register_forward_hook(lambda module, inputs, output: channels.append(output.shape[1]))
    network(torch.zeros(2, 3, 64, 64, device="meta"))

    taps = stage_taps(network)
    assert [tap.channels for tap in taps] == channels
    for stage, tap in zip(STAGES, taps, strict=True):
        last = list(network.get_submodule(stage).named_children())[-1]
        assert tap.relu == f"{stage}.{last[0]}.relu"
        assert isinstance(network.get_submodule(tap.relu), nn.ReLU)
        norm = network.get_submodule(tap.norm)
        assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == tap.channels
        norms = [n for n, child in last[1].named_children() if isinstance(child, nn.BatchNorm2d)]
        assert tap.norm == f"{stage}.{last[0]}.{norms[-1]}"


READ = {  # maps before a ReLU for an image of 64 pixels: edge and channels of stages 1 to 4
    "mobilenet_v1": [(16, 128), (8, 256), (4, 512), (2, 1024)],
    "mobilenet_v2": [(16, 144), (8, 192), (4, 384), (2, 960)],
    "mobilenet_v2_moved_stride": [(8, 192), (4, 384), (2, 960)],
    "mobilenet_v3_small": [(16, 16), (8, 88), (4, 144), (2, 576)],
    "efficientnet_b0": [(16, 144), (8, 240), (4, 672), (2, 1152)],
    "regnet_y_400mf": [(16, 48), (8, 104), (4, 208), (2, 440)],
    "timm.resnet18": [(16, 64), (8, 128), (4, 256), (2, 512)],
    "timm.mobilenetv3_small_050": [(16, 16), (8, 56), (4, 72), (2, 288)],
    "timm.convnext_atto": [(16, 160), (8, 320), (4, 640), (2, 1280)],
    "shufflenet_v2_x0_5": [(8, 48), (4, 96), (2, 192)],
    "shufflenet_v2_x1_0": [(8, 116), (4, 232), (2, 464)],
}


@pytest.mark.parametrize("name", READ)
def test_other_networks_are_read_before_a_relu(name: str) -> None:
    torch.manual_seed(0)
    network, taps = build_backbone(name).eval(), stage_taps(on_meta(name))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm's residual branches begin at 0
    activated: dict[str, torch.Tensor] = {}
    normalised: dict[str, torch.Tensor] = {}
    for tap in taps:
        module = network.get_submodule(tap.relu)
        module.register_forward_hook(lambda module, inputs, output, name=tap.relu: activated.update({name: output}))
        if tap.norm:
            norm = network.get_submodule(tap.norm)
            norm.register_forward_hook(lambda module, inputs, output, name=tap.relu: normalised.update({name: output}))
    with torch.no_grad(), FeatureTaps(network, [tap.relu for tap in taps]).record() as maps:
        network(torch.randn(2, 3, 64, 64))
    assert [(map_.shape[3], map_.shape[1]) for map_ in maps] == READ[name]
    assert [64 // 2 ** (tap.stage + 1) for tap in taps] == [map_.shape[2] for map_ in maps]
    for tap, map_ in zip(taps, maps, strict=True):
        assert map_.min() < 0 and tap.channels == map_.shape[1]
        assert torch.equal(network.get_submodule(tap.relu)(map_), activated[tap.relu])
        if tap.norm and not name.startswith(("regnet", "timm")):  # before a residual sum; timm's norms activate too
            assert torch.equal(map_, normalised[tap.relu])


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_state_dict_keys_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
    ours = on_meta(name).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("name", ["resnet18", "thin_resnet14"])
def test_trunk_gives_the_pooled_features_and_shares_the_weights(name: str) -> None:
    torch.manual_seed(0)
    network = build_backbone(name).eval()
    images = torch.randn(2, 3, 48, 48)
    features = trunk(network)
    expected = create_feature_extractor(network, {"flatten": "features"})(images)["features"]
    assert torch.equal(features(images), expected)
    assert expected.shape == (2, network.get_parameter("fc.weight").shape[1])
    own = {id(parameter) for parameter in network.parameters()} - {
        id(p) for p in network.get_submodule("fc").parameters()
    }
    assert {id(parameter) for parameter in features.parameters()} == own


def test_a_classifier_that_lies_deeper_is_taken_off_without_changing_the_network() -> None:
    torch.manual_seed(0)
    network = build_backbone("timm.regnetx_002", 7).eval()
    images = torch.randn(2, 3, 48, 48)
    seen: list[torch.Tensor] = []
    network.get_submodule("head.fc").register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        features, logits = trunk(network)(images), network(images)
    assert logits.shape == (2, 7) and torch.equal(features, seen[0]) and features.shape[1] == feature_width(network)


def test_a_network_of_timm_that_does_not_fit_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"timm has no network 'regnetx_02', did you mean 'regnet"):
        build_backbone("timm.regnetx_02")
    with pytest.raises(UserError, match=r"does not take images of any size .*: choose a CNN"):
        stage_taps(build_backbone("timm.vit_tiny_patch16_224"))
    with pytest.raises(UserError, match=r"name modules with --taps"):
        stage_taps(on_meta("timm.vgg11_bn"))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm, which is not installed: pip install 'mgd_ssl\[timm\]'"):
        build_backbone("timm.regnetx_002")


def test_head_has_the_official_keys_and_shapes() -> None:
    with torch.device("meta"):
        head = {k: v for k, v in build_encoder("resnet50", dim=128).state_dict().items() if k.startswith("fc.")}
    assert {key: tuple(value.shape) for key, value in head.items()} == {
        "fc.0.weight": (2048, 2048),
        "fc.0.bias": (2048,),
        "fc.2.weight": (128, 2048),
        "fc.2.bias": (128,),
    }


def test_head_width_and_embedding_size_can_be_chosen() -> None:
    encoder = build_encoder("thin_resnet10", dim=16, head_width=24)
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 16)
    assert encoder.get_parameter("fc.0.weight").shape == (24, 128)


@pytest.mark.parametrize(("name", "last"), [("thin_resnet10", 128), ("thin_resnet14", 512)])
def test_thin_networks_keep_nine_positions_of_a_small_image(name: str, last: int) -> None:
    network = build_backbone(name)
    maps = create_feature_extractor(network, {stage: stage for stage in STAGES})(torch.zeros(2, 3, 48, 48))
    assert [tuple(maps[stage].shape[2:]) for stage in STAGES] == [(24, 24), (12, 12), (6, 6), (3, 3)]
    assert maps["layer4"].shape[1] == network.get_parameter("fc.weight").shape[1] == last
    assert isinstance(network.get_submodule("layer1.0"), Bottleneck) == (name == "thin_resnet14")


def test_thin_networks_depend_on_the_seed_alone() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_backbone("thin_resnet10").state_dict()["layer3.0.conv1.weight"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_unknown_name_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(UserError) as error:
        build_backbone("resnet19")
    assert str(error.value).startswith("unknown architecture 'resnet19', did you mean 'resnet1")
    assert all(name in str(error.value) for name in BACKBONES)
    with pytest.raises(UserError, match="unknown architecture 'vgg'"):
        build_encoder("vgg", dim=8)

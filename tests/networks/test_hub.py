"""Weights that other libraries write: timm, safetensors, transformers; each compared with the network that wrote it."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from mgd_ssl.config import DEVIATION, MEAN
from mgd_ssl.errors import UserError
from mgd_ssl.networks.normalisation import USUAL, Normalisation
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.networks.weights import Asked, load_backbone, load_trained
from mgd_ssl.run.folder import find_weights, run_image_size, run_of
from tests.networks.foreign import backbone, randomised

BLOCKS = {"resnet18": ("basic", [2, 2, 2, 2], 64), "resnet50": ("bottleneck", [3, 4, 6, 3], 256)}


def normalised(pixels: Tensor, by: Normalisation) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in by)
    return (pixels - mean) / std


def pixels(size: int = 64) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@torch.no_grad()
def test_a_state_dict_of_timm(tmp_path: Path, suffix: str) -> None:
    network: Any = randomised(timm.create_model("resnet18", num_classes=10))
    path = tmp_path / f"model.{suffix}"
    if suffix == "pth":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    found, report = load_backbone(path)
    expected = network.forward_head(network.forward_features(pixels()), pre_logits=True)
    torch.testing.assert_close(found(pixels()), expected, rtol=1e-5, atol=1e-5)
    assert (report.arch, report.unused, report.layout) == ("resnet18", {"fc": 2}, "plain")
    assert load_trained(path, Asked(classifier=True)).report.classes == 10


@pytest.mark.parametrize("arch", BLOCKS)
@torch.no_grad()
def test_a_resnet_of_transformers(tmp_path: Path, arch: str) -> None:
    kind, depths, first = BLOCKS[arch]
    config = ResNetConfig(layer_type=kind, depths=depths, hidden_sizes=[first, 2 * first, 4 * first, 8 * first])
    network: Any = randomised(ResNetForImageClassification(config) if arch == "resnet18" else ResNetModel(config))
    network.save_pretrained(tmp_path)
    input_of = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(input_of))
    path = find_weights(tmp_path)
    found, report = load_backbone(path)
    own = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    inner = network.resnet if arch == "resnet18" else network
    expected = inner(normalised(pixels(), own)).pooler_output.flatten(1)
    torch.testing.assert_close(found(normalised(pixels(), USUAL)), expected, rtol=1e-4, atol=1e-4)
    assert (report.arch, report.layout, report.normalisation) == (arch, "transformers ResNet", own)
    assert report.unused == ({"fc": 2} if arch == "resnet18" else {})
    assert any("mean 0.5 0.4 0.3, deviation 0.2 0.3 0.4" in note for note in report.notes())
    assert run_of(path) is None and run_image_size(run_of(path)) == 224  # its config.json is none of a run


@pytest.mark.parametrize(
    "key", [{"downsample_in_bottleneck": True}, {"hidden_act": "gelu"}, {"downsample_in_first_stage": True}]
)
def test_a_resnet_that_computes_otherwise_is_refused(tmp_path: Path, key: dict[str, Any]) -> None:
    config = ResNetConfig(
        layer_type="bottleneck", depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 64], embedding_size=8, **key
    )
    ResNetModel(config).save_pretrained(tmp_path)
    (name,) = key
    with pytest.raises(UserError, match=rf"config\.json says {name} .*torchvision's ResNets have .*: choose another"):
        load_backbone(find_weights(tmp_path))


def test_folders_that_lack_something(tmp_path: Path) -> None:
    config = ResNetConfig(layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 64], embedding_size=8)
    ResNetModel(config).save_pretrained(tmp_path)
    described = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds model\.safetensors but no config\.json"):
        find_weights(tmp_path)
    with pytest.raises(UserError, match=r"no config\.json lies beside it"):
        load_backbone(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(described[:-9])
    with pytest.raises(UserError, match=r"holds a run|config\.json|beside"):
        load_backbone(find_weights(tmp_path))
    (tmp_path / "config.json").write_text(described)
    (tmp_path / "preprocessor_config.json").write_text("[1")
    with pytest.raises(UserError, match=r"preprocessor_config\.json is damaged"):
        load_backbone(find_weights(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds weights in several files \(model\.safetensors\.index\.json\)"):
        find_weights(tmp_path)


@torch.no_grad()
def test_a_folder_of_timm_says_its_input_and_licence(tmp_path: Path) -> None:
    network = backbone()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    said = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "license": "apache-2.0"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t", "pretrained_cfg": said}))
    trained = load_trained(find_weights(tmp_path))
    half = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (trained.report.normalisation, trained.report.licence) == (half, "apache-2.0")
    expected = network(normalised(pixels(), half))
    torch.testing.assert_close(trained.backbone(normalised(pixels(), USUAL)), expected, rtol=1e-4, atol=1e-5)


def test_safetensors_that_are_damaged_or_hostile(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(backbone().state_dict(), path)
    whole = path.read_bytes()
    for cut in (9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="truncated or damaged"):
            load_backbone(path)
    headers: list[dict[str, Any]] = [
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**60]}},
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "XX", "shape": [4], "data_offsets": [0, 16]}},
        {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"},  # they overlap
        {"a": 3},
    ]
    for header in headers:
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
        with pytest.raises(UserError, match="truncated or damaged"):
            load_backbone(path)
    path.write_bytes(struct.pack("<Q", 2**62) + whole[8:])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_backbone(path)
    generator = np.random.default_rng(0)
    for _ in range(50):
        path.write_bytes(struct.pack("<Q", int(generator.integers(1, 60))) + b"{" + generator.bytes(40))
        with pytest.raises(UserError):
            load_backbone(path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_in_safetensors_is_cast(tmp_path: Path, kind: torch.dtype) -> None:
    state = {k: v.to(kind) if v.is_floating_point() else v for k, v in backbone().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    found, report = load_backbone(tmp_path / "model.safetensors")
    assert report.cast and report.cast[0][0] == str(kind).removeprefix("torch.")
    assert all(v.dtype == torch.float32 for v in found.state_dict().values() if v.is_floating_point())


# the input of a teacher


@torch.no_grad()
def test_a_teacher_gets_the_input_it_was_trained_on(tmp_path: Path) -> None:
    network = backbone()
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    own = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    teacher = Teacher.load(path, normalisation=own)
    assert list(teacher.backbone.state_dict()) == list(network.state_dict())
    before_relu: list[Tensor] = []
    network.get_submodule("layer3.0").register_forward_hook(lambda module, inputs, output: before_relu.append(output))
    expected = network(normalised(pixels(), own))
    images = normalised(pixels(), Normalisation(MEAN, DEVIATION))
    for fold in (False, True):
        if fold:
            teacher.fold()
            assert not any(isinstance(module, nn.BatchNorm2d) for module in teacher.modules())
        maps, feature = teacher.watched(images)
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(maps[2].relu(), before_relu[0], rtol=1e-4, atol=1e-4)
    plainly = Teacher.load(path).watched(images)[1]
    assert (plainly - expected).abs().max() > 0.5  # it matters


@pytest.mark.parametrize(("name", "top1"), [("resnet50-1x.pth", 69.1), ("pretrain_res50x1.pth.tar", 74.4)])
@torch.no_grad()
def test_converted_simclr_sees_pixels_and_byol_does_not(tmp_path: Path, name: str, top1: float) -> None:
    network = backbone()
    torch.save({"state_dict": network.state_dict()}, tmp_path / name)
    found, report = load_backbone(tmp_path / name)
    assert report.recognised is not None and not report.recognised.proven
    assert report.recognised.known.top1 == top1 and report.licence == "Apache-2.0"
    own = Normalisation((0, 0, 0), (1, 1, 1)) if "1x" in name else USUAL
    torch.testing.assert_close(
        found(normalised(pixels(), USUAL)), network(normalised(pixels(), own)), rtol=1e-4, atol=1e-4
    )

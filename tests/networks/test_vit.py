"""ViTs as teachers: files of timm, DINOv2 and transformers, their pooled feature, and their tokens as maps."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import VisionTransformer
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from mgd_ssl.errors import UserError
from mgd_ssl.networks.backbones import build_backbone, stage_taps, trunk
from mgd_ssl.networks.normalisation import USUAL, Normalisation
from mgd_ssl.networks.teacher import Teacher, let_meet
from mgd_ssl.networks.vit import TokenMaps
from mgd_ssl.networks.weights import Asked, load_trained
from mgd_ssl.run.folder import find_weights
from tests.networks.foreign import backbone, randomised

TINY: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def tiny_vit(**options: Any) -> VisionTransformer:
    """128 wide, 3 blocks, patches of 8 pixels, positions for 4 x 4 of them."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2}
    return randomised(VisionTransformer(**sizes | {"num_classes": 0} | options))


def saved(folder: Path, state: dict[str, Tensor], name: str = "vit.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


@torch.no_grad()
def test_a_file_of_timm_is_told_from_its_shapes(tmp_path: Path) -> None:
    network = tiny_vit(num_classes=7)
    trained = load_trained(saved(tmp_path, network.state_dict()))
    assert isinstance(trained.backbone, TokenMaps)
    expected = network.forward_head(network.forward_features(images()), pre_logits=True)
    torch.testing.assert_close(trained.backbone(images()), expected, rtol=1e-4, atol=1e-4)
    assert expected.std(dim=0).mean() > 0.05  # the comparison means something
    report = trained.report
    assert (report.arch, report.unused) == ("vit_128x3_patch8", {"head": 2})
    assert report.num_loaded == len(network.state_dict()) - 2


@torch.no_grad()
def test_a_file_is_taken_by_its_name_in_timm(tmp_path: Path) -> None:
    network = randomised(timm.create_model("test_vit", num_classes=0, img_size=32, dynamic_img_size=True))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    for arch in ("test_vit", "timm:test_vit"):
        trained = load_trained(tmp_path / "model.safetensors", Asked(arch))
        torch.testing.assert_close(trained.backbone(images()), network(images()), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"does not fit vit_tiny_patch16_224: .* tensors are at fault"):
        load_trained(tmp_path / "model.safetensors", Asked("vit_tiny_patch16_224"))
    with pytest.raises(UserError, match="timm has no model vit_tny_patch16_224, did you mean 'vit_tiny_patch16_224'"):
        load_trained(tmp_path / "model.safetensors", Asked("vit_tny_patch16_224"))
    with pytest.raises(UserError, match="holds a ViT, not a resnet18"):
        load_trained(tmp_path / "model.safetensors", Asked("resnet18"))


@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_a_file_as_dinov2_publishes_it(tmp_path: Path, registers: int) -> None:
    """Its positions hold the class token's, also where there are registers; it has a mask token."""
    network = tiny_vit(init_values=1.0, reg_tokens=registers, no_embed_class=registers > 0)
    state = dict(network.state_dict())
    if registers:
        of_class = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1))
        state["cls_token"] = state["cls_token"] - of_class
        state["pos_embed"] = torch.cat([of_class, state["pos_embed"]], dim=1)
        state["register_tokens"] = state.pop("reg_token")
    path = saved(tmp_path, state | {"mask_token": torch.zeros(1, 128)})
    trained = load_trained(path)
    torch.testing.assert_close(trained.backbone(images()), network(images()), rtol=1e-4, atol=1e-4)
    assert trained.report.unused == {"mask_token": 1}


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2_with_registers"])
@torch.no_grad()
def test_a_vit_of_transformers(tmp_path: Path, kind: str) -> None:
    network: Any
    if kind == "vit":
        network = ViTModel(
            ViTConfig(**TINY, image_size=32, patch_size=8, intermediate_size=96), add_pooling_layer=False
        )
    elif kind == "dinov2":
        network = Dinov2Model(Dinov2Config(**TINY, image_size=32, patch_size=8))
    else:
        network = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY, image_size=32, patch_size=8))
    randomised(network).save_pretrained(tmp_path)
    said = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    trained = load_trained(find_weights(tmp_path))
    assert trained.report.layout == "transformers ViT"
    assert trained.report.normalisation == Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in USUAL)
    ours = ((images() * 0.5 + 0.5) - mean) / std
    expected = network(pixel_values=images()).last_hidden_state[:, 0]
    torch.testing.assert_close(trained.backbone(ours), expected, rtol=1e-3, atol=1e-3)


def test_swiglu_of_transformers_is_refused(tmp_path: Path) -> None:
    Dinov2Model(Dinov2Config(**TINY, image_size=32, patch_size=8, use_swiglu_ffn=True)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="use_swiglu_ffn True, which is not converted: take the same network from timm"):
        load_trained(find_weights(tmp_path))


@torch.no_grad()
def test_a_folder_of_timm_names_its_vit(tmp_path: Path) -> None:
    network = randomised(timm.create_model("test_vit", num_classes=0, img_size=32))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    said = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "license": "apache-2.0"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": said}))
    report = load_trained(find_weights(tmp_path)).report
    assert (report.arch, report.licence) == ("test_vit", "apache-2.0")
    assert report.normalisation.mean == (0.5, 0.5, 0.5)


def test_timm_knows_the_input_of_a_name_with_a_tag(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    path = saved(tmp_path, {name: torch.randn(value.shape) for name, value in state.items()})
    report = load_trained(path, Asked("vit_tiny_patch16_224.augreg_in21k")).report
    config = timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k")
    assert config is not None and report.normalisation == (config.mean, config.std) != USUAL
    assert report.licence == config.license
    assert load_trained(path).report.normalisation == USUAL


@torch.no_grad()
def test_maps_are_the_tokens_after_the_last_norm(tmp_path: Path) -> None:
    network: Any = tiny_vit(dynamic_img_size=True)
    teacher = Teacher.load(saved(tmp_path, network.state_dict()))
    assert teacher.stages == [] and trunk(teacher.backbone)(images()).shape == (2, 128)
    student = backbone()  # its maps at 64 pixels: 32, 16, 8, 4
    let_meet(teacher, student, stage_taps(student), 64)
    assert [tap.stage for tap in teacher.stages] == [3, 4] and teacher.channels == [128, 128]
    maps, _, feature = teacher.seen(images(64))
    tokens, (middle, last) = network.forward_intermediates(images(64), indices=[1, 2], norm=True)
    torch.testing.assert_close(maps[0], middle, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps[1], F.avg_pool2d(last, 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(feature, tokens[:, 0], rtol=1e-4, atol=1e-4)
    assert [tuple(m.shape) for m in maps] == [(2, 128, 8, 8), (2, 128, 4, 4)]
    teacher.fold()  # there is nothing to fold, and nothing breaks
    with pytest.raises(UserError, match=r"set mgd\.margin to 'measured'"):
        teacher.margins()


@pytest.mark.parametrize(("size", "stages"), [(72, [3, 4]), (56, [3, 4]), (40, [3, 4])])
@torch.no_grad()
def test_a_grid_that_is_near_meets_a_stage_by_resizing_the_images(tmp_path: Path, size: int, stages: list[int]) -> None:
    """A patch of 10 pixels is nearest to a stride of 8."""
    network = tiny_vit(img_size=40, patch_size=10)
    teacher = Teacher.load(saved(tmp_path, network.state_dict()))
    student = backbone()
    taps = [tap for tap in stage_taps(student) if tap.stage in (2, 3, 4)]
    let_meet(teacher, student, taps, size)
    found = teacher(images(size))
    expected = student_maps(student, size)
    assert [tap.stage for tap in teacher.stages] == stages
    assert [m.shape[2:] for m in found] == [expected[stage] for stage in stages]
    resized = F.interpolate(images(size), 10 * expected[stages[0]][0], mode="bicubic", antialias=True)
    assert isinstance(teacher.backbone, TokenMaps)
    tokens = teacher.backbone.vit.forward_intermediates(resized, indices=[1], norm=True)[1][0]
    torch.testing.assert_close(found[0], tokens, rtol=1e-4, atol=1e-4)


def student_maps(student: nn.Module, size: int) -> dict[int, torch.Size]:
    kept: dict[int, torch.Size] = {}
    for stage in range(1, 5):
        layer = student.get_submodule(f"layer{stage}")
        layer.register_forward_hook(lambda module, inputs, output, stage=stage: kept.update({stage: output.shape[2:]}))
    student(images(size))
    return kept


def test_dinov2_at_224_meets_a_resnet_in_stages_3_and_4() -> None:
    """16 x 16 patches of 14 pixels become 14 x 14, at 196 pixels."""
    with torch.device("meta"):
        maps = TokenMaps(VisionTransformer(patch_size=14, embed_dim=64, depth=1, num_heads=1, num_classes=0))
    assert maps.meet({1: 56, 2: 28, 3: 14, 4: 7}, 224) == [3, 4]
    assert round(224 * maps.grid_per_pixel) * 14 == 196
    maps.patch = 8
    assert maps.meet({1: 56, 2: 28, 3: 14, 4: 7}, 224) == [2, 3]


def test_a_grid_that_meets_no_stage_is_a_sentence(tmp_path: Path) -> None:
    teacher = Teacher.load(saved(tmp_path, tiny_vit().state_dict()))
    student = build_backbone("thin_resnet10")
    with pytest.raises(UserError, match=r"8-pixel patches are a grid of 8 x 8 at data\.image_size 64, .* 4 x 4, none"):
        let_meet(teacher, student, stage_taps(student)[3:], 64)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"blocks.1.attn.qkv.weight": None}, "blocks.1.attn.qkv.weight is missing"),
        ({"blocks.1.extra.weight": torch.zeros(2)}, "blocks.1.extra.weight does not belong to it"),
        ({"blocks.1.norm1.weight": torch.zeros(2)}, r"blocks.1.norm1.weight is \[2\], not \[128\]"),
        ({"pos_embed": torch.zeros(1, 12, 128)}, "12 positions, which are no square"),
        ({"pos_embed": None}, "without learnt positions"),
        ({"norm.weight": None}, "whose shapes do not tell its kind"),
        ({"norm.weight": torch.full((128,), torch.inf)}, "not finite"),
    ],
)
def test_tensors_that_make_no_vit_are_a_sentence(tmp_path: Path, change: dict[str, Tensor | None], told: str) -> None:
    state = {**tiny_vit().state_dict(), **change}
    path = saved(tmp_path, {name: value for name, value in state.items() if value is not None})
    with pytest.raises(UserError, match=told):
        load_trained(path)


def test_without_timm_there_is_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, tiny_vit().state_dict())
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"holds a ViT, for which timm is needed: pip install 'mgd_ssl\[timm\]'"):
        load_trained(path)

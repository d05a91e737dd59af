"""Networks in the formats of other libraries: loaded by them here, not by the code that wrote them."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mgd_ssl.config import PretrainConfig
from mgd_ssl.export.config import ExportConfig
from mgd_ssl.export.exported import FORMATS, export, writer
from mgd_ssl.export.student import Student
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import BACKBONES, build_backbone, head_of, num_classes_of
from mgd_ssl.run.result import Evaluation
from tests.export.written import exported, saved, trained

TEACHER = {"arch": "resnet50", "sha256": "5" * 64, "prefix": "", "md5": "59fd9945645e27d585be89338ce9232e"}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_equal(network: Any, expected: nn.Module, images: Tensor, tolerance: float = 0.0) -> None:
    difference = (network(images) - expected(images)).abs().max()
    assert difference <= tolerance * expected(images).abs().max()


@pytest.mark.parametrize(("arch", "classes"), [("resnet18", None), ("shufflenet_v2_x0_5", 7)])
def test_torchvision_loads_it(arch: str, classes: int | None, networks: Any, images: Tensor, tmp_path: Path) -> None:
    expected, source = networks(arch, classes)
    told = exported(source, "torchvision", tmp_path / "out" / "student.pt")
    network = torchvision.models.get_model(arch, num_classes=classes or 1000)
    if classes is None:
        network.fc = nn.Identity()
    network.load_state_dict(torch.load(tmp_path / "out" / "student.pt", weights_only=True))
    assert_equal(network.eval(), expected, images)
    assert (told.arch, told.classes, told.difference) == (arch, classes, 0.0)
    names: dict[str, Any] = {"torch": torch, "torchvision": torchvision}
    exec(told.usage, names)  # what is printed is right
    assert_equal(names["model"].eval(), expected, images)


@pytest.mark.parametrize(
    ("arch", "classes", "theirs"),
    [
        ("resnet18", None, "resnet18"),
        ("mobilenet_v1", 5, "mobilenetv1_100"),
        ("mobilenet_v3_small", 5, "mobilenetv3_small_100"),
    ],
)
def test_timm_loads_it(
    arch: str, classes: int | None, theirs: str, networks: Any, images: Tensor, tmp_path: Path
) -> None:
    expected, source = networks(arch, classes)
    told = exported(source, "timm", tmp_path / "student.safetensors")
    names: dict[str, Any] = {"timm": timm}
    exec(told.usage, names)
    assert type(names["model"]) is type(timm.create_model(theirs)) and f"'{theirs}'" in told.usage
    assert_equal(names["model"].eval(), expected, images, 1e-5)


def test_safetensors_hold_the_weights_and_where_they_come_from(run: Path, tmp_path: Path) -> None:
    export(ExportConfig(source=run, format="safetensors", out=tmp_path / "student.safetensors"))
    weights = torch.load(run / "encoder.pt", weights_only=True)
    found = load_file(tmp_path / "student.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    with safe_open(tmp_path / "student.safetensors", "pt") as file:
        told = file.metadata()
    assert told["arch"] == "thin_resnet10" and told["image_size"] == "32" and told["commit"] == "abc"
    assert told["teacher_sha256"] == TEACHER["sha256"] and told["teacher_licence"].startswith("CC-BY-NC 4.0")
    assert json.loads(told["recipe"])["optim"]["epochs"] == 3 and json.loads(told["mean"]) == [0.485, 0.456, 0.406]
    assert told["run"] == "run"


@pytest.mark.parametrize("normalise", [False, True])
def test_onnxruntime_runs_it_on_any_number_of_images(
    normalise: bool, networks: Any, images: Tensor, tmp_path: Path
) -> None:
    expected, source = networks("thin_resnet10")
    exported(source, "onnx", tmp_path / "student.onnx", normalise=normalise)
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"))
    pixels = (images * 0.2 + 0.5).clamp(0, 1)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normed = ((pixels.permute(0, 2, 3, 1).numpy() - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)
    for count in (1, 3):
        (found,) = session.run(None, {"images": pixels[:count].numpy() if normalise else normed[:count]})
        with torch.no_grad():
            np.testing.assert_allclose(found, expected(torch.from_numpy(normed[:count])), rtol=1e-4, atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["arch"] == "thin_resnet10"


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As tools/convert-torchvision-to-d2.py of detectron2 names them."""
    found = {}
    for key, value in state.items():
        if "num_batches_tracked" in key or key.startswith("fc."):
            continue
        name = key if "layer" in key else f"stem.{key}"
        for stage in (1, 2, 3, 4):
            name = name.replace(f"layer{stage}", f"res{stage + 1}")
        for norm in (1, 2, 3):
            name = name.replace(f"bn{norm}", f"conv{norm}.norm")
        found[name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = value
    return found


@pytest.mark.parametrize(("arch", "classes"), [("resnet18", None), ("resnet50", 3)])
def test_detectron2s_names_are_the_published_ones(
    arch: str, classes: int | None, networks: Any, tmp_path: Path
) -> None:
    expected, source = networks(arch, classes)
    told = exported(source, "detectron2", tmp_path / "backbone.pkl")
    content = pickle.loads((tmp_path / "backbone.pkl").read_bytes())
    wanted = published_names(expected.state_dict())
    assert content["matching_heuristics"] is True and content["model"].keys() == wanted.keys()
    assert all(np.array_equal(content["model"][name], value.numpy()) for name, value in wanted.items())
    assert f"DEPTH: {arch.removeprefix('resnet')}" in told.usage
    assert ("RES2_OUT_CHANNELS: 64" in told.usage) == (arch == "resnet18")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a teacher, an evaluation of its encoder, and one of another file."""
    run = tmp_path_factory.mktemp("runs") / "run"
    run.mkdir()
    return filled(run, "thin_resnet10")


def filled(run: Path, arch: str) -> Path:
    saved(trained(arch), run / "encoder.pt", False)
    config = PretrainConfig(
        out=run, student=arch, data={"train": "secret/folder", "image_size": 32}, optim={"epochs": 3}, knn={"k": 7}
    )
    saved_config = {"config": config.model_dump(mode="json"), "data": {"num_images": 512}, "teacher": TEACHER}
    (run / "config.json").write_text(json.dumps({**saved_config, "environment": {"git": "abc"}}))
    knn = {"top1": 41.5, "top5": 80.25, "random_top1": 12.5, "random_top5": 33.0}
    (run / "result.json").write_text(json.dumps({"steps": 3, "epochs": 3, "knn": knn}))
    for name, top1 in (("encoder.pt", 61.25), ("other.pt", 99.0)):
        evaluation = Evaluation(
            "linear", name[:3], "a | protocol", str(run / name), arch, {"top1": [top1], "top5": [90.0]}
        )
        evaluation.save(run)
    return run


def test_timm_and_transformers_load_the_folder_and_its_card_tells_what_was_measured(
    images: Tensor, tmp_path: Path
) -> None:
    import transformers

    (tmp_path / "run").mkdir()
    source = filled(tmp_path / "run", "resnet18")
    config = ExportConfig(source=source, format="huggingface", out=tmp_path / "student", licence="mit")
    told = export(config)
    expected = trained("resnet18")
    expected.fc = nn.Identity()
    assert told.difference == 0
    assert_equal(timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval(), expected, images)
    model = transformers.AutoModel.from_pretrained(tmp_path / "student").eval()
    assert_equal(lambda x: model(pixel_values=x).pooler_output, expected, images)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "student")
    assert processor(np.zeros((40, 50, 3), np.uint8), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)

    card = (tmp_path / "student" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n") and "license: mit\n" in card
    assert "| linear | 61.25 | 90.00 | a \\| protocol |" in card and "99.0" not in card
    assert "| k-NN | 41.50 | 80.25 | k-NN k=7 T=0.07, 32 px |" in card and "| 12.50 | 33.00 |" in card
    assert "| optim.epochs | 3 |" in card and "CC-BY-NC 4.0" in card and "5" * 64 in card
    assert "secret/folder" not in card


NEITHER = {*(f"regnet_{x}_{size}" for x in "xy" for size in ("400mf", "800mf", "1_6gf", "3_2gf"))}


NEITHER |= {"convnext_tiny", "convnext_small"}


CARRIED = {  # format -> what it cannot hold
    "torchvision": {"thin_resnet10", "thin_resnet14", "mobilenet_v1"},
    "timm": NEITHER
    | {"thin_resnet10", "thin_resnet14", "mobilenet_v2_moved_stride", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"},
    "safetensors": set[str](),
    "onnx": set[str](),
}


def test_every_network_but_these_is_carried(tmp_path: Path) -> None:
    for format in FORMATS:
        missing = set()
        for arch in BACKBONES:
            with torch.device("meta"):
                network = build_backbone(arch)
            report = LoadReport(tmp_path, "", arch, "", 0, {}, classes=num_classes_of(network))
            assert head_of(network) is not None
            if not writer(format).carries(Student(network, report, 224, {}, {}, [], None)):
                missing.add(arch)
        resnets = {arch for arch in BACKBONES if "resne" in arch and not arch.startswith("thin")}
        own = {"detectron2": set(BACKBONES) - resnets, "huggingface": CARRIED["timm"]}
        assert missing == (CARRIED | own)[format], format

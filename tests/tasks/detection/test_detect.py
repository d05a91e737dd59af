"""`mgd-ssl detect`: runs of seconds, continued, in two processes, and what their settings reach."""

import json
import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.resnet import Bottleneck

from mgd_ssl.cli import main
from mgd_ssl.errors import Interrupted, UserError
from mgd_ssl.files import read_json
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.tasks.detection.coco import Category
from mgd_ssl.tasks.detection.config import DetectConfig
from mgd_ssl.tasks.detection.detect import detect
from mgd_ssl.tasks.detection.detectron2_file import load_detectron2, read_arrays
from mgd_ssl.tasks.detection.weights import load_teacher
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from tests.runs import differing, flags, rows
from tests.tasks.detection.detect_runs import STEPS, guided, launched, newest, settings
from tests.tasks.detection.shapes import CATEGORIES, write_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    write_shapes(root, "train", 14, seed=0)
    write_shapes(root, "val", 5, seed=1)
    return root


@pytest.fixture(scope="module")
def teacher(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a detector on thin_resnet14, its BatchNorms trained."""
    out = tmp_path_factory.mktemp("teachers") / "teacher"
    network = {"norm": "batch", "frozen_stages": 0, "pyramid_channels": 16}
    detect(**settings(shapes, out, student="thin_resnet14", network=network, optim={"steps": 2}))
    return out


@pytest.fixture(scope="module")
def whole(shapes: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted guided run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    detect(**settings(shapes, out, evaluate_every=3, **guided(teacher, padding="mask")))
    return out


def test_a_stopped_run_goes_on_bit_for_bit(
    shapes: Path, teacher: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = settings(shapes, tmp_path / "stopped", evaluate_every=3, **guided(teacher, padding="mask"))
    with monkeypatch.context() as patch:
        call = Update.__call__

        def interrupted(self: Update, inputs: tuple[Any, ...], step: int) -> StepOutput:
            if step == 4:  # in the middle of the second epoch
                signal.raise_signal(signal.SIGTERM)
            return call(self, inputs, step)

        patch.setattr(Update, "__call__", interrupted)
        with pytest.raises(Interrupted, match="after step 5"):
            detect(**how)
    how["data"]["workers"] = 1
    result = detect(**how)
    assert differing(newest(tmp_path / "stopped"), newest(whole)) == []
    assert rows(tmp_path / "stopped") == rows(whole)
    assert detect(**how) == result


def test_events_and_losses_are_rows(whole: Path) -> None:
    told = rows(whole)
    assert [row["step"] for row in told if row["kind"] == "matching"] == [0, 4]
    assert [row["step"] for row in told if row["kind"] == "average_precision"] == [3, 6, 7]
    losses = [row for row in told if row["kind"] == "train"]
    assert len(losses) == STEPS
    for row in losses:
        assert row["loss"] == pytest.approx(row["classes"] + row["boxes"] + row["mgd"]) and row["mgd"] > 0
    assert main(["runs", str(whole)]) == 0
    result = read_json(whole / "result.json")
    assert result["average_precision"]["AP"] is not None and set(result["classes"]) == {"square", "disc"}
    assert isinstance(json.loads((whole / "detections.json").read_text()), list)


def test_other_settings_boxes_or_teachers_are_refused(shapes: Path, teacher: Path, whole: Path, tmp_path: Path) -> None:
    same = settings(shapes, whole, evaluate_every=3, **guided(teacher, padding="mask"))
    with pytest.raises(UserError, match=r"optim\.lr: 0\.005 -> 0\.5"):
        detect(**{**same, "optim": {**same["optim"], "lr": 0.5}})
    write_shapes(tmp_path, "train", 14, seed=5)
    data = {**same["data"], "train_images": tmp_path / "train2017"}
    with pytest.raises(UserError, match="the images or boxes"):
        detect(**{**same, "data": {**data, "train_annotations": tmp_path / "annotations/instances_train2017.json"}})


def test_two_processes_are_one_up_to_rounding(teacher: Path, tmp_path: Path) -> None:
    """Images of one size: GroupNorm sees padding too, and its share depends on a process's batch."""
    write_shapes(tmp_path, "train", 9, seed=2, size=(64, 64))
    write_shapes(tmp_path, "val", 3, seed=3, size=(64, 64))
    how = settings(tmp_path, tmp_path / "one", **guided(teacher, matching_images=5))
    how["data"]["train_sides"], how["optim"]["steps"] = (64,), 3
    detect(**how)
    codes = list(launched(["detect", *flags({**how, "out": tmp_path / "two"})], tmp_path))
    assert codes == [0, 0], (tmp_path / "0.txt").read_text()
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        numbers = {name: value for name, value in one.items() if isinstance(value, float)}
        assert one.keys() == two.keys() and {name: two[name] for name in numbers} == pytest.approx(numbers, rel=1e-3)
    states = [newest(tmp_path / name) for name in ("one", "two")]
    assert float(states[1]["student"]["positives"]) == pytest.approx(float(states[0]["student"]["positives"]))


def test_the_published_weights_of_the_optimiser(
    shapes: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Update] = []

    def stop(self: Update, inputs: tuple[Any, ...], step: int) -> StepOutput:
        kept.append(self)
        raise Interrupted("stopped", 15)

    monkeypatch.setattr(Update, "__call__", stop)
    optim = {"momentum": 0.5, "nesterov": False, "weight_decay": 0.25}
    with pytest.raises(Interrupted):
        detect(**settings(shapes, tmp_path / "run", optim=optim, **guided(teacher)))
    rest, norms = kept[0].optimizer.param_groups
    assert (rest["weight_decay"], norms["weight_decay"], rest["momentum"], rest["nesterov"]) == (0.25, 0.0, 0.5, False)
    of_norms = {
        id(p) for module in kept[0].module.modules() if isinstance(module, nn.GroupNorm) for p in module.parameters()
    }
    assert {id(p) for p in norms["params"]} == of_norms and len(of_norms) > 20  # those of the student's maps too
    assert len(rest["params"]) + len(norms["params"]) == len(list(kept[0].module.parameters()))


# what a run begins with


def test_a_backbone_begins_where_its_run_ended(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    network = build_backbone("thin_resnet10")
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 0.3)
    torch.save(network.state_dict(), tmp_path / "encoder.pt")
    seen: dict[str, Any] = {}

    def stop(self: Update, inputs: tuple[Any, ...], step: int) -> StepOutput:
        seen.update(self.module.student.body.state_dict())  # type: ignore[union-attr]
        raise Interrupted("stopped", 15)

    monkeypatch.setattr(Update, "__call__", stop)
    how = {"norm": "frozen", "frozen_stages": 1}
    with pytest.raises(Interrupted):
        detect(**settings(shapes, tmp_path / "run", student=None, backbone=tmp_path, network=how))
    expected = {key: v for key, v in network.state_dict().items() if "fc." not in key and "num_batches" not in key}
    assert differing(seen, expected) == []


TWO = [Category(each["id"], each["name"]) for each in CATEGORIES]  # type: ignore[arg-type]


def test_torchvisions_retinanet_is_a_teacher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).eval()
    for module in theirs.backbone.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            module.eps = 0.0  # as torchvision does with COCO_V1
    torch.save(theirs.state_dict(), tmp_path / "retinanet.pth")
    config = DetectConfig(out=tmp_path, teacher=tmp_path / "retinanet.pth")
    coco = [Category(i, str(i)) for i in range(1, 91)]
    teacher = load_teacher(config, coco)
    assert teacher is not None
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        layer4 = theirs.backbone.body(images)["2"]
    assert torch.equal(teacher(images)[3].relu(), layer4)
    with pytest.raises(UserError, match="detects 91 classes and the data has 2"):
        load_teacher(config, TWO)
    assert load_teacher(config.model_copy(update={"teacher_of_other_classes": True}), TWO) is not None


def detectron2_names(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A plain ResNet's tensors under detectron2's names."""
    arrays = {}
    for key, value in state.items():
        if key.startswith("fc.") or key.endswith("num_batches_tracked"):
            continue
        *where, module, last = key.split(".")
        if not where:
            name = f"stem.conv1.{'norm.' if module == 'bn1' else ''}{last}"
        else:
            stage, block = int(where[0].removeprefix("layer")) + 1, where[1]
            part = {"0": "shortcut", "1": "shortcut.norm"}.get(module) or (
                f"conv{module[2]}.norm" if module.startswith("bn") else module
            )
            name = f"res{stage}.{block}.{part}.{last}"
        arrays[f"backbone.bottom_up.{name}"] = value.numpy()
    return arrays


def write_pickle(path: Path, arrays: dict[str, np.ndarray], **more: Any) -> Path:
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo", **more}, protocol=2))
    return path


def test_detectron2s_file_is_a_teacher(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = build_backbone("resnet50").eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
    arrays = detectron2_names(network.state_dict())
    arrays["head.cls_score.bias"] = np.zeros(9 * 2, np.float32)
    path = write_pickle(tmp_path / "model_final.pkl", arrays)
    loaded, report, classes = load_detectron2(path)
    assert (report.arch, classes) == ("resnet50", 2)
    network.fc = nn.Identity()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), network(images))
    assert load_teacher(DetectConfig(out=tmp_path, teacher=path), TWO) is not None


def test_caffe2s_weights_take_our_images(tmp_path: Path) -> None:
    """BGR of 0 to 255 less the mean, strides in the first convolution: folded BatchNorms tell it."""
    torch.manual_seed(1)
    network = build_backbone("resnet50").eval()
    for stage in (2, 3, 4):
        block = network.get_submodule(f"layer{stage}.0")
        assert isinstance(block, Bottleneck)
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    loaded, _, classes = load_detectron2(write_pickle(tmp_path / "a.pkl", detectron2_names(network.state_dict())))
    assert classes is None
    network.fc = nn.Identity()
    pixels = torch.rand(1, 3, 64, 64) * 255
    mean, deviation = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    theirs = (pixels - mean[:, None, None]).flip(1)
    ours = (pixels - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ours), network(theirs), rtol=1e-3, atol=1e-3)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code of the file was run",))


def test_code_in_a_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_pickle(tmp_path / "evil.pkl", {"backbone.bottom_up.x": np.zeros(3)}, more=Evil())
    with pytest.raises(UserError, match=r"it asks for __builtin__\.print.*, which could run code"):
        read_arrays(path)
    assert "was run" not in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_arrays(path)
    with pytest.raises(UserError, match="holds no arrays by name"):
        read_arrays(write_pickle(tmp_path / "empty.pkl", {}))
    with pytest.raises(UserError, match="holds no backbone of a ResNet"):
        load_detectron2(write_pickle(tmp_path / "other.pkl", {"backbone.bottom_up.stem.conv1.weight": np.ones((2, 2))}))


# settings that do not fit


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optim": {"batch_size": 99}}, "has 14 images with a box, fewer than optim.batch_size 99"),
        ({"student": "mobilenet_v2"}, "a detector's backbone is a ResNet and not a mobilenet_v2"),
        ({"student": "resnet18"}, "first stage has a stride of 4 and the teacher's one of 2"),
        ({"data": {"root": Path("nowhere")}}, "instances_train2017.json cannot be read"),
    ],
)
def test_what_does_not_fit_is_told(
    shapes: Path, teacher: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        detect(**settings(shapes, tmp_path / "run", **{**guided(teacher), **changes}))
    assert not (tmp_path / "run" / "checkpoints").exists()

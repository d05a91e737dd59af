"""`mgd-ssl classify`: runs of seconds, continued, in two processes, and what their settings reach."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision.transforms import functional as TF

from mgd_ssl.cli import main
from mgd_ssl.config import ClassifyConfig
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.errors import Interrupted, UserError
from mgd_ssl.files import read_json
from mgd_ssl.mgd.margin import relu_margin
from mgd_ssl.networks.backbones import build_backbone, initial_classifier, stage_taps, trunk
from mgd_ssl.networks.taps import FeatureTaps
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.tasks.classification import Classification
from mgd_ssl.tasks.classifier import GuidedClassifier
from mgd_ssl.tasks.classify import classify
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from tests.conftest import write_images

SPEED = ("seconds", "images_per_second", "data_wait")  # what differs between two equal runs


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/<class> and val/<class> of three classes, 14 and 5 images each."""
    root = tmp_path_factory.mktemp("labelled")
    for split, count in (("train", 14), ("val", 5)):
        for label, name in enumerate(("ash", "birch", "cedar")):
            write_images(root / split / name, count, seed=10 * label + count)
    return root


@pytest.fixture(scope="module")
def teacher(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a trained thin_resnet14."""
    out = tmp_path_factory.mktemp("teachers") / "teacher"
    classify(**settings(photographs, out, student="thin_resnet14", optim={"epochs": 1}))
    return out


def settings(photographs: Path, out: Path, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "out": out,
        "student": "thin_resnet10",
        "data": {"train": photographs / "train", "val": photographs / "val", "image_size": 32, "workers": 0},
        "mgd": {"matching_images": 16},
        "optim": {"epochs": 3, "batch_size": 16, "lr": 0.01},
        "checkpoint": {"keep": 3},
        "runtime": {"log_every": 1, "threads": 1, "device": "cpu"},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and key in base else value
    return base


def guided(teacher: Path, **changes: Any) -> dict[str, Any]:
    return {"teacher": teacher, "kd": {"weight": 1.0}, "mgd": {"matching_images": 16, "matching_every": 2}, **changes}


def state(run: Path) -> dict[str, Any]:
    newest = sorted((run / "checkpoints").glob("step_*.pt"))[-1]
    content: dict[str, Any] = torch.load(newest, weights_only=True)
    return {key: value for key, value in content.items() if key not in ("config", "metrics_bytes")}


def rows(run: Path) -> list[str]:
    parsed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({key: value for key, value in row.items() if key not in SPEED}) for row in parsed]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# whole runs


MIXED = {"epochs": 3, "batch_size": 16, "lr": 0.01, "mixup": 0.4, "ema": 0.7}


@pytest.mark.parametrize("student", ["thin_resnet10", "mobilenet_v2"])
def test_a_stopped_run_goes_on_bit_for_bit(
    photographs: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: str
) -> None:
    # MGD, KD, mixup and an average of the weights; the other one has dropout
    how = guided(teacher, optim=MIXED) if student == "thin_resnet10" else {}
    classify(**settings(photographs, tmp_path / "whole", student=student, **how))
    with monkeypatch.context() as patch:
        inputs = Classification.inputs

        def interrupted(self: Classification, batch: Any, step: int) -> tuple[Any, ...]:
            if step == 2:
                signal.raise_signal(signal.SIGTERM)
            return inputs(self, batch, step)

        patch.setattr(Classification, "inputs", interrupted)
        with pytest.raises(Interrupted):
            classify(**settings(photographs, tmp_path / "stopped", student=student, **how))
    result = classify(**settings(photographs, tmp_path / "stopped", student=student, **how))
    assert same(state(tmp_path / "stopped"), state(tmp_path / "whole"))
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert classify(**settings(photographs, tmp_path / "stopped", student=student, **how)) == result


def test_the_accuracy_is_that_of_the_student_left_behind(photographs: Path, teacher: Path, tmp_path: Path) -> None:
    result = classify(**settings(photographs, tmp_path / "run", **guided(teacher)))
    assert recomputed(photographs, Path(result.encoder)) == pytest.approx(result.validation["top1"])
    told = [row for row in map(eval_row, rows(tmp_path / "run")) if row["kind"] == "validation"]
    assert [row["epoch"] for row in told] == [1, 2, 3]
    best = max(told, key=lambda row: row["top1"])
    assert result.best == {key: best[key] for key in ("epoch", "top1", "top5")}
    counts = np.load(tmp_path / "run" / "confusion.npz")["counts"]
    assert counts.sum(1).tolist() == [5, 5, 5]
    assert 100 * np.trace(counts) / 15 == pytest.approx(result.validation["top1"])


def eval_row(line: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(line)
    return row


@torch.no_grad()
def recomputed(photographs: Path, encoder: Path) -> float:
    """Top-1 with nothing of the project but the network."""
    network = build_backbone("thin_resnet10", 3).eval()
    network.load_state_dict(torch.load(encoder, weights_only=True))
    right = 0
    for label, name in enumerate(("ash", "birch", "cedar")):
        for path in (photographs / "val" / name).iterdir():
            image = TF.center_crop(TF.resize(Image.open(path).convert("RGB"), [37]), [32, 32])
            pixels = TF.normalize(TF.to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            right += int(network(pixels[None]).argmax()) == label
    return 100 * right / 15


def test_two_processes(photographs: Path, teacher: Path, tmp_path: Path) -> None:
    args = [
        *("classify", "--out", tmp_path / "run", "--student", "thin_resnet10", "--teacher", teacher, "--kd.weight", 1),
        *("--data.train", photographs / "train", "--data.val", photographs / "val", "--data.image-size", 32),
        *("--data.workers", 0, "--optim.epochs", 2, "--optim.batch-size", 16, "--optim.lr", 0.01),
        *("--mgd.matching-images", 15, "--runtime.threads", 1, "--runtime.device", "cpu"),
    ]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    env = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "mgd_ssl.cli", *map(str, args)],
            env=env | {"MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    result = read_json(tmp_path / "run" / "result.json")
    assert result["steps"] == 4
    # ranks classify parts of an odd number of images, with the statistics that are saved
    assert recomputed(photographs, tmp_path / "run" / "encoder.pt") == pytest.approx(result["validation"]["top1"])


def test_a_run_is_evaluated_and_begun_with_by_its_folder(photographs: Path, teacher: Path, tmp_path: Path) -> None:
    weights = torch.load(teacher / "encoder.pt", weights_only=True)
    seen: dict[str, Any] = {}

    def first(self: Classification, batch: Any, step: int) -> tuple[Any, ...]:
        if not seen:
            seen.update({name: value.clone() for name, value in self.module.student.state_dict().items()})
        return inputs(self, batch, step)

    inputs = Classification.inputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classification, "inputs", first)
        how = {"student": None, "student_weights": teacher, "optim": {"epochs": 1}}
        classify(**settings(photographs, tmp_path / "tuned", **how))
    assert same(seen, weights)  # the classifier too, as there are as many classes
    backbone, report = load_backbone(teacher / "encoder.pt")
    assert report.arch == "thin_resnet14" and report.classes is None
    images = torch.randn(2, 3, 32, 32)
    whole = load_backbone(teacher / "encoder.pt", with_classifier=True)[0]
    assert torch.equal(trunk(whole.eval())(images), backbone.eval()(images))
    assert main(["runs", str(teacher)]) == 0


# settings reach what they set


class FirstUpdate(Exception):
    pass


def first_step(monkeypatch: pytest.MonkeyPatch, **chosen: Any) -> tuple[Update, StepOutput, tuple[Any, ...]]:
    """What the first step of a run sees and makes, and its update; the run ends there."""
    kept: list[Any] = []
    call = Update.__call__

    def stop(self: Update, inputs: tuple[Any, ...], step: int) -> StepOutput:
        kept.extend([self, call(self, inputs, step), inputs])
        raise FirstUpdate

    with monkeypatch.context() as patch:
        patch.setattr(Update, "__call__", stop)
        with pytest.raises(FirstUpdate):
            classify(**chosen)
    update, output, inputs = kept
    return update, output, inputs


def test_settings_reach_the_optimiser(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optim = {
        "lr": 0.5, "momentum": 0.7, "nesterov": False, "weight_decay": 0.03, "decay_norms": False, "warmup_epochs": 2,
        "label_smoothing": 0.25,
    }  # fmt: skip
    update, output, _ = first_step(monkeypatch, **settings(photographs, tmp_path / "run", optim=optim))
    matrices, vectors = update.optimizer.param_groups
    for group in (matrices, vectors):
        assert (group["lr"], group["momentum"], group["nesterov"]) == (pytest.approx(0.05), 0.7, False)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.03, 0.0)
    assert all(parameter.ndim > 1 for parameter in matrices["params"]) and len(vectors["params"]) > 5
    assert all(parameter.ndim == 1 for parameter in vectors["params"])
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(update.module.parameters()))
    assert list(output.losses) == ["cross_entropy"]


@torch.no_grad()
def test_settings_reach_the_losses(
    photographs: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = guided(teacher, kd={"weight": 0.5, "temperature": 3.0}, num_classes=3)
    base = settings(photographs, tmp_path / "run", optim={"label_smoothing": 0.25}, **how)
    with torch.enable_grad():
        _, output, (images, labels, targets, _) = first_step(monkeypatch, **base)
    student = initial_classifier("thin_resnet10", 3, 0).train()
    logits = student(images)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.25)
    torch.testing.assert_close(output.losses["cross_entropy"], expected)
    whole = load_backbone(teacher / "encoder.pt", with_classifier=True)[0].eval()
    softened = F.softmax(whole(images) / 3, 1)
    divergence = (softened * (softened.log() - F.log_softmax(logits / 3, 1))).sum(1).mean() * 9
    torch.testing.assert_close(output.losses["kd"], 0.5 * divergence, rtol=1e-4, atol=1e-6)
    assert output.losses["mgd"] > 0 and len(targets["mgd"]) == 4


def test_the_margins_come_from_the_file_that_is_named(
    photographs: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = build_backbone("thin_resnet14")
    for value in other.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.2, 0.9)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    how = guided(teacher, mgd={"matching_images": 16, "margins_from": tmp_path / "other.pt", "drop_remainder": True})
    update, _, _ = first_step(monkeypatch, **settings(photographs, tmp_path / "run", **how))
    assert isinstance(update.module, GuidedClassifier)
    (matched,) = (term for _, term in update.module.guide.named_terms() if isinstance(term, MatchedMaps))
    mgd = matched.mgd
    assert mgd.drop_remainder
    for margin, tap in zip(mgd.margins, stage_taps(other), strict=True):
        norm = other.get_submodule(tap.norm)
        assert isinstance(norm, torch.nn.BatchNorm2d)
        torch.testing.assert_close(margin, relu_margin(norm.weight.detach(), norm.bias.detach()))


def test_few_labels_are_a_share_of_every_class(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"share_of_labels": 0.5}
    for out in ("a", "b"):
        config = settings(photographs, tmp_path / out, data=data, optim={"batch_size": 7})
        _, _, (images, *_) = first_step(monkeypatch, **config)
        assert len(images) == 7
        described = read_json(tmp_path / out / "config.json")
        assert described["data"]["num_images"] == 21


def test_the_published_reading_of_few_stages() -> None:
    network = build_backbone("mobilenet_v2_moved_stride").eval()
    taps = stage_taps(network)
    assert [(tap.stage, tap.channels) for tap in taps] == [(2, 192), (3, 384), (4, 960)]
    with torch.no_grad(), FeatureTaps(network, [tap.relu for tap in taps]).record() as maps:
        network(torch.zeros(1, 3, 224, 224))
    assert [list(map_.shape[1:]) for map_ in maps] == [[192, 28, 28], [384, 14, 14], [960, 7, 7]]


def test_shufflenet_is_torchvisions() -> None:
    torch.manual_seed(0)
    ours = build_backbone("shufflenet_v2_x1_0").eval()
    theirs = torchvision.models.shufflenet_v2_x1_0().eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), FeatureTaps(ours, ["relu2", "relu3", "relu4"]).record() as maps:
        assert torch.equal(ours(images), theirs(images))
    assert all((map_ < 0).any() for map_ in maps)


def test_mixed_images_go_to_both_networks(
    photographs: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = settings(photographs, tmp_path / "plain", **guided(teacher))
    mixed = settings(photographs, tmp_path / "mixed", optim={"mixup": 0.4, "label_smoothing": 0.1}, **guided(teacher))
    _, _, (images, labels, _, none) = first_step(monkeypatch, **plain)
    _, output, (found, same_labels, targets, mixing) = first_step(monkeypatch, **mixed)
    assert none is None and torch.equal(labels, same_labels)
    share, order = float(mixing.share), mixing.order
    assert 0 < share < 1 and sorted(order.tolist()) == list(range(16))
    torch.testing.assert_close(found, share * images + (1 - share) * images[order])
    with torch.no_grad():
        whole = load_backbone(teacher / "encoder.pt", with_classifier=True)[0].eval()
        torch.testing.assert_close(targets["kd"], whole(found), rtol=1e-4, atol=1e-4)
        logits = initial_classifier("thin_resnet10", 3, 0).train()(found)
    soft = share * F.one_hot(labels, 3) + (1 - share) * F.one_hot(labels[order], 3)
    expected = -((0.9 * soft + 0.1 / 3) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(output.losses["cross_entropy"].detach(), expected)


def test_mixing_is_drawn_anew_in_every_step(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    call = Update.__call__

    def note(self: Update, inputs: tuple[Any, ...], step: int) -> StepOutput:
        shares.append(float(inputs[3].share))
        return call(self, inputs, step)

    monkeypatch.setattr(Update, "__call__", note)
    classify(**settings(photographs, tmp_path / "run", optim={"mixup": 1.0, "epochs": 2}))
    assert len(set(shares)) == len(shares) == 4


def test_the_average_of_the_weights_is_what_is_measured_and_left(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[torch.Tensor] = []
    after_step = Classification.after_step

    def note(self: Classification, carried: Any) -> None:
        kept.append(next(self.module.student.parameters()).detach().clone())
        after_step(self, carried)

    monkeypatch.setattr(Classification, "after_step", note)
    result = classify(**settings(photographs, tmp_path / "run", optim={"ema": 0.7, "epochs": 2}))
    expected = kept[0]
    for weights in kept[1:]:
        expected = 0.7 * expected + 0.3 * weights
    left = torch.load(result.encoder, weights_only=True)
    assert len(kept) == 4 and result.weights == "averaged"
    torch.testing.assert_close(left["conv1.weight"], expected)
    assert not torch.allclose(left["conv1.weight"], kept[-1])
    assert recomputed(photographs, Path(result.encoder)) == pytest.approx(result.validation["top1"])


# what does not fit


def refused(**chosen: Any) -> str:
    with pytest.raises(UserError) as caught:
        classify(**chosen)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_told_in_a_sentence(photographs: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "val" / "ash").mkdir(parents=True)
    (tmp_path / "val" / "dogwood").mkdir()
    write_images(tmp_path / "val" / "ash", 2)
    write_images(tmp_path / "val" / "dogwood", 2)
    told = refused(**settings(photographs, out, data={"val": tmp_path / "val"}))
    assert "differ in classes (birch, cedar, dogwood)" in told
    (tmp_path / "val" / "elm").mkdir()
    told = refused(**settings(photographs, out, data={"val": tmp_path / "val"}))
    assert "elm is the folder of a class without images: add some, or remove the folder" in told
    assert "num_classes is 2" in refused(**settings(photographs, out, num_classes=2))
    assert "fewer than optim.batch_size" in refused(**settings(photographs, out, data={"share_of_labels": 0.1}))
    other = build_backbone("thin_resnet14", 7)
    for value in other.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 0.9)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    told = refused(**settings(photographs, out, **guided(tmp_path / "other.pt")))
    assert "has a classifier of 7 classes and the student 3 classes" in told
    torch.save(trunk_alone(other), tmp_path / "moco.pt")
    told = refused(**settings(photographs, out, **guided(tmp_path / "moco.pt")))
    assert "has no classifier and the student 3 classes: fine-tune the teacher on the same labels" in told
    told = refused(**settings(photographs, out, taps=("layer2.0.rely",), **guided(teacher)))
    assert "'layer2.0.rely' is no module of the student, did you mean 'layer2.0.relu'" in told
    told = refused(**settings(photographs, out, teacher_taps=("layer9",), **guided(teacher)))
    assert "'layer9' is no module of the teacher" in told
    told = refused(**settings(photographs, out, student="thin_resnet14", **guided(narrow(tmp_path))))
    assert "student channels and only" in told
    told = refused(**settings(photographs, out, student="mobilenet_v1", **guided(teacher)))
    assert "in stage 1 (8 x 8 and 16 x 16; in the teacher layer2.0.relu has 8 x 8)" in told
    assert "stages that fit: none" in told
    told = refused(**settings(photographs, out, **guided(teacher, mgd={"weight": 0}, kd={"weight": 0})))
    assert told.startswith("mgd.weight and kd.weight are 0")
    told = refused(**settings(photographs, out, student="convnext_tiny", **guided(teacher)))
    assert "has no map before an activation" in told
    with pytest.raises(ValueError, match=r"nesterov is true and momentum 0"):
        ClassifyConfig(**settings(photographs, out, optim={"momentum": 0}))


def trunk_alone(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """As a self-supervised run leaves it."""
    return {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}


def narrow(folder: Path) -> Path:
    """A trained thin_resnet10 of three classes, narrower than a thin_resnet14."""
    network = build_backbone("thin_resnet10", 3)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 0.9)
    torch.save(network.state_dict(), folder / "narrow.pt")
    return folder / "narrow.pt"


def test_other_settings_are_refused_in_the_folder_of_a_run(photographs: Path, teacher: Path) -> None:
    how = {"student": "thin_resnet14", "optim": {"epochs": 1, "lr": 0.02}}
    assert "optim.lr: 0.01 -> 0.02" in refused(**settings(photographs, teacher, **how))

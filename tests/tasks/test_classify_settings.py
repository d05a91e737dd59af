"""Settings of `mgd-ssl classify` reach what they set, and what does not fit is told in a sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision

from mgd_ssl.classify_settings import ClassifyConfig
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.errors import UserError
from mgd_ssl.files import read_json
from mgd_ssl.mgd.margin import relu_margin
from mgd_ssl.networks.backbones import build_backbone, initial_classifier, stage_taps
from mgd_ssl.networks.taps import FeatureTaps
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.tasks.classification import Classification
from mgd_ssl.tasks.classifier import GuidedClassifier
from mgd_ssl.tasks.classify import classify
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from tests.conftest import write_images
from tests.tasks.classify_runs import guided, recomputed, settings

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

"""Backbones from checkpoint files: what is accepted, what is refused, and with which sentence."""

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from mgd_ssl.errors import UserError
from mgd_ssl.files import sha256_of
from mgd_ssl.networks.backbones import BACKBONES, build_backbone, build_encoder, without_head
from mgd_ssl.networks.weights import _fitting_arch, load_backbone
from mgd_ssl.run.checkpoint import read_checkpoint
from moco import MoCo
from tests.networks.saved import State, randomised, save


def official_moco(arch: str) -> dict[str, Any]:
    """A checkpoint as main_moco.py of the official program writes it (model in DDP)."""
    model = randomised(MoCo(build_encoder(arch, dim=16), dim=16, queue_size=8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    return {"epoch": 200, "arch": arch, "state_dict": state, "optimizer": optimizer.state_dict()}


def assert_same_weights(backbone: nn.Module, state: State) -> None:
    loaded = backbone.state_dict()
    assert set(loaded) == {key for key in state if not key.startswith("fc.")}
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def refusal(path: Path, arch: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        load_backbone(path, arch)
    sentence = str(error.value)
    assert str(path) in sentence and "\n" not in sentence
    return sentence


def test_official_moco_checkpoint_gives_its_query_encoder(tmp_path: Path) -> None:
    checkpoint = official_moco("resnet18")
    path = save(tmp_path, checkpoint)
    backbone, report = load_backbone(path)
    prefix = "module.encoder_q."
    assert_same_weights(
        backbone,
        {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)},
    )
    tensors = len(torchvision.models.resnet18().state_dict())
    assert (report.arch, report.prefix, report.num_loaded) == ("resnet18", prefix, tensors - 2)
    assert report.unused == {"encoder_q": 4, "encoder_k": tensors + 2, "queue": 1, "queue_ptr": 1}
    assert report.sha256 == sha256_of(path) and len(report.sha256) == 64
    assert "resnet18" in str(report) and "'module.encoder_q.' stripped" in str(report)


def test_plain_torchvision_state_dict_loads_without_its_classifier(tmp_path: Path) -> None:
    state = randomised(torchvision.models.resnet18(num_classes=10)).state_dict()
    backbone, report = load_backbone(save(tmp_path, state))
    assert_same_weights(backbone, state)
    assert isinstance(backbone.fc, nn.Identity)
    assert (report.arch, report.prefix, report.unused) == ("resnet18", "", {"fc": 2})


def test_our_export_without_a_classifier_loads(tmp_path: Path, thin: State) -> None:
    exported = {key: value for key, value in thin.items() if not key.startswith("fc.")}
    backbone, report = load_backbone(save(tmp_path, exported))
    assert_same_weights(backbone, thin)
    assert (report.unused, report.num_loaded) == ({}, len(exported))
    assert "not used: nothing" in str(report)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"state_dict": {f"encoder_q.{key}": value for key, value in state.items()}},
        lambda state: {f"backbone.{key}": value for key, value in state.items()},
    ],
)
def test_wrapped_and_prefixed_state_dicts_load(
    tmp_path: Path, thin: State, wrap: Callable[[State], dict[str, Any]]
) -> None:
    assert_same_weights(load_backbone(save(tmp_path, wrap(thin)))[0], thin)


@pytest.mark.parametrize("zipped", [True, False])
def test_old_files_without_batch_counts_load(tmp_path: Path, thin: State, zipped: bool) -> None:
    old = {key: value for key, value in thin.items() if not key.endswith("num_batches_tracked")}
    path = save(tmp_path, {"state_dict": old}, _use_new_zipfile_serialization=zipped)
    backbone, report = load_backbone(path)
    assert report.num_loaded == len(old) - 2
    assert all(torch.equal(value, old[key]) for key, value in backbone.state_dict().items() if key in old)


@pytest.mark.parametrize("arch", BACKBONES)
def test_architecture_is_told_from_the_shapes(arch: str) -> None:
    with torch.device("meta"):
        network = build_backbone(arch)
    found = without_head(network, network.state_dict())
    old = {key: value for key, value in found.items() if not key.endswith("num_batches_tracked")}
    told = arch.removesuffix("_moved_stride")  # a stride has no shape: the variant has to be named
    assert _fitting_arch(found, Path("weights.pt")) == _fitting_arch(old, Path("weights.pt")) == told


@pytest.mark.parametrize("arch", ["resnet34", "thin_resnet14"])
def test_architecture_need_not_be_named(tmp_path: Path, arch: str) -> None:
    state = randomised(build_backbone(arch)).state_dict()
    backbone, report = load_backbone(save(tmp_path, state))
    assert report.arch == arch
    assert_same_weights(backbone, state)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "is not a file: pass the path of a checkpoint" in refusal(tmp_path / "no.pt")
    assert "is not a file" in refusal(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [
        b"hello world\n",
        b"<!DOCTYPE html><html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n",
        b"comment\nposix system\n",
        b"\x89PNG\r\n\x1a\n",
        pickle.dumps({"a": 1}),
        pickle.dumps({"a": argparse.Namespace()}),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    assert "is no torch checkpoint: pass a file written by torch.save" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 1e-4, 0.001, 0.1, 0.5, 0.9, 0.999, -1])
def test_truncated_files_are_called_truncated(tmp_path: Path, thin: State, zipped: bool, share: float) -> None:
    path = save(tmp_path, thin, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if share == -1 else whole[: int(share * len(whole))])
    assert "is truncated or damaged: copy or download it again" in refusal(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    generator = np.random.default_rng(0)
    for head in (b"", b"\x80\x02\x8a\x0a", b"PK\x03\x04"):
        for _ in range(100):
            path.write_bytes(head + generator.bytes(int(generator.integers(1, 40))))
            with pytest.raises(UserError):
                read_checkpoint(path)


class Custom:
    pass


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("passenger", [Custom(), print, nn.Linear(1, 1), argparse.Namespace(lr=Custom())])
def test_python_objects_are_refused_with_the_reason(
    tmp_path: Path, thin: State, zipped: bool, passenger: object
) -> None:
    path = save(tmp_path, {"state_dict": thin, "args": passenger}, _use_new_zipfile_serialization=zipped)
    sentence = refusal(path)
    assert "holds Python objects besides tensors, which could run code" in sentence
    assert "torch.save(model.state_dict(), ...)" in sentence


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    path = save(tmp_path, {"state_dict": Bomb(tmp_path / "mark")})
    assert "could run code" in refusal(path)
    assert not (tmp_path / "mark").exists()


def test_content_that_is_no_state_dict(tmp_path: Path, thin: State) -> None:
    assert "holds a list, not a dictionary of weights" in refusal(save(tmp_path, list(thin.values())))
    assert "holds a Tensor, not a dictionary" in refusal(save(tmp_path, torch.zeros(3)))
    assert "holds no tensors by name" in refusal(save(tmp_path, {"epoch": 3}))
    assert "holds no tensors by name" in refusal(save(tmp_path, {"state_dict": {}}))
    assert "holds no ResNet" in refusal(save(tmp_path, nn.Linear(2, 2).state_dict()))


def test_half_of_the_keys_do_not_pass(tmp_path: Path, thin: State) -> None:
    half = {key: value for key, value in thin.items() if key.startswith(("conv1", "bn1", "layer1", "layer2"))}
    sentence = refusal(save(tmp_path, half))
    missing = [key for key in thin if key.startswith(("layer3", "layer4")) and not key.endswith("tracked")]
    assert f"does not fit thin_resnet10: {len(missing)} tensors are missing (first: {missing[0]})" in sentence


def test_a_single_missing_tensor_is_named(tmp_path: Path, thin: State) -> None:
    key = "layer3.0.bn2.running_var"
    sentence = refusal(save(tmp_path, {k: v for k, v in thin.items() if k != key}))
    assert f"1 tensors are missing (first: {key})" in sentence


def test_the_wrong_architecture_is_refused(tmp_path: Path, thin: State) -> None:
    sentence = refusal(save(tmp_path, thin), "resnet18")
    assert "does not fit resnet18" in sentence and "tensors are missing" in sentence
    assert "have another shape (first: conv1.weight is [16, 3, 3, 3], not [64, 3, 7, 7])" in sentence
    assert "unknown architecture 'resnet19', did you mean" in _unknown_arch(save(tmp_path, thin))


def _unknown_arch(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_backbone(path, "resnet19")
    return str(error.value)


def test_tensors_that_do_not_belong_are_refused(tmp_path: Path, thin: State) -> None:
    sentence = refusal(save(tmp_path, {**thin, "layer5.0.conv1.weight": torch.zeros(1)}))
    assert "1 do not belong to it (first: layer5.0.conv1.weight)" in sentence


def test_a_random_network_is_no_teacher(tmp_path: Path) -> None:
    assert "was never trained" in refusal(save(tmp_path, build_backbone("thin_resnet14").state_dict()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["layer2.0.conv1.weight", "layer4.0.bn1.running_var"])
def test_values_that_are_not_finite_name_their_tensor(tmp_path: Path, thin: State, key: str, value: float) -> None:
    broken = thin[key].clone()
    broken.view(-1)[1] = value
    assert f"{key} holds values that are not finite" in refusal(save(tmp_path, {**thin, key: broken}))


def test_two_networks_are_ambiguous(tmp_path: Path, thin: State) -> None:
    both = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in thin.items()}
    assert "holds several networks ('student.', 'teacher.')" in refusal(save(tmp_path, both))

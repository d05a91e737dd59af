"""Exports that cannot be: nothing is kept, and why is one sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mgd_ssl.cli import main
from mgd_ssl.errors import UserError
from mgd_ssl.export.student import Student
from tests.export.written import exported


def sentence(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["export", *map(str, words)]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    return told


def test_a_network_that_differs_is_not_kept(
    networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, source = networks("thin_resnet10")
    changed = dict(torch.load(source, weights_only=True))
    changed["layer1.0.conv1.weight"] = changed["layer1.0.conv1.weight"] * 1.01
    monkeypatch.setattr(Student, "weights", changed)
    told = sentence(capsys, source, "--image-size", 48, "--out", tmp_path / "student.safetensors")
    assert "safetensors computes something else: its outputs differ by up to 0.0" in told
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_sentence(networks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, source = networks("thin_resnet10")
    out = tmp_path / "student.onnx"
    assert "opset is 11: set it to 18 or more" in sentence(
        capsys, source, "--format", "onnx", "--opset", 11, "--out", out
    )
    assert "timm is not known to hold a thin_resnet10: choose --format safetensors or onnx" in sentence(
        capsys, source, "--format", "timm", "--out", tmp_path / "a.safetensors"
    )
    assert "source is not set" in sentence(capsys, "--out", out)
    assert "out is not set" in sentence(capsys, source)
    (tmp_path / "empty").mkdir()
    assert "holds neither encoder.pt nor checkpoints" in sentence(capsys, tmp_path / "empty", "--out", out)
    assert "end it so" in sentence(capsys, source, "--format", "onnx", "--out", tmp_path / "student")
    assert "choose --format huggingface to upload" in sentence(capsys, source, "--out", out, "--push", "me/it")
    assert "only onnx can hold" in sentence(capsys, source, "--out", out, "--normalise")
    assert f"{source} is there already" in sentence(capsys, source, "--out", source)
    assert "choose another --out" in sentence(capsys, source, "--out", source / "student")
    assert "did you mean 'onnx'?" in sentence(capsys, source, "--format", "onx", "--out", out)
    assert not out.exists()


def test_a_package_that_is_missing_is_named(networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, source = networks("thin_resnet10")
    monkeypatch.setattr("mgd_ssl.export.exported.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"onnx needs onnx and onnxscript and onnxruntime: pip install 'mgd_ssl\[export\]'"
    ):
        exported(source, "onnx", tmp_path / "student.onnx")


def test_what_another_library_raises_is_one_sentence(
    networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source = networks("thin_resnet10")
    monkeypatch.setattr("mgd_ssl.export.safetensors.read", lambda *given: [][0])
    with pytest.raises(UserError, match=r"could not write or read the network .IndexError: list index out of range"):
        exported(source, "safetensors", tmp_path / "student.safetensors")
    assert not list(tmp_path.iterdir())

"""Hostile weights: refused in one sentence, and nothing in them is run."""

import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from linear_eval import linear
from mgd_ssl import UserError, pretrain
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.run.checkpoint import serialised
from tests.faults.damage import sentence
from tests.runs import tiny

# hostile files


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """State dict of a network that could be a teacher."""
    generator = torch.Generator().manual_seed(0)
    state = build_backbone("thin_resnet10").state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.1 + 0.01)
        assert name
    return state


def test_hostile_pickles_are_refused_in_one_sentence(weights: dict[str, Tensor], tmp_path: Path, rounds: int) -> None:
    """The pickle of a whole file changed, its checksum made right again."""
    draw, path = random.Random(6), tmp_path / "hostile.pt"
    with zipfile.ZipFile(io.BytesIO(serialised(dict(weights)))) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    refused = 0
    for _ in range(60 * rounds):
        pickled = bytearray(records[name])
        for _ in range(draw.choice([1, 1, 2, 8])):
            place = draw.randrange(len(pickled))
            how = draw.randrange(3)
            if how == 0:
                pickled[place] = draw.randrange(256)
            elif how == 1:
                del pickled[place : place + draw.randrange(1, 5)]
            else:
                pickled[place:place] = draw.randbytes(draw.randrange(1, 5))
        with zipfile.ZipFile(path, "w") as archive:
            for other, content in records.items():
                archive.writestr(other, bytes(pickled) if other == name else content)
        try:
            load_backbone(path)
        except UserError as error:
            sentence(error, path)
            refused += 1
    assert refused > 30 * rounds


def test_compressed_records_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """A file of kilobytes could stand for gigabytes."""
    path = tmp_path / "packed.pt"
    with zipfile.ZipFile(io.BytesIO(serialised(dict(weights)))) as archive, zipfile.ZipFile(path, "w") as packed:
        for record in archive.infolist():
            packed.writestr(record.filename, archive.read(record), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="holds compressed records") as error:
        load_backbone(path)
    sentence(error, path)


def test_a_file_written_without_checksums_is_read(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_backbone(path)[1].num_loaded == len(weights) - 2


KEY = "layer2.0.bn1.running_var"


HOSTILE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sparse": (lambda t: t.to_sparse(), r"not dense \(sparse_coo\)"),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), r"quantised \(qint8\)"),
    "meta": (lambda t: t.to("meta"), "a meta tensor, a shape without values"),
    "nested": (lambda t: torch.nested.nested_tensor([t, t]), "a nested tensor"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), "of type float8_e4m3fn"),
    "complex": (lambda t: t.to(torch.complex64), "of type complex64"),
    "bool": (lambda t: t > 0, "of type bool"),
    "integer": (lambda t: t.int(), "of type int32"),
    "no elements": (lambda t: t[:0], r"is \[0\], not \[32\]"),
    "no end": (lambda t: torch.zeros(1).expand(10**15), r"is \[1000000000000000\], not \[32\]"),
    "negative": (lambda t: t - 1, r"holds negative values \(-0\.9\d*\), which no variance has"),
    "not finite": (lambda t: t / 0, "holds values that are not finite"),
    "overflowing": (lambda t: t.double() * 1e300, r"beyond the range of float32 \(largest \d\.\d+e\+299\)"),
}


@pytest.mark.filterwarnings("ignore")  # of torch, while such tensors are made
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_tensors_are_refused_in_one_sentence(kind: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    make, told = HOSTILE[kind]
    path = tmp_path / "weights.pt"
    torch.save({**weights, KEY: make(weights[KEY])}, path)
    for arch in (None, "thin_resnet10"):
        with pytest.raises(UserError, match=told) as error:
            load_backbone(path, arch)
        assert KEY in sentence(error, path)


@pytest.mark.parametrize("key", ["layer1.0.bn2.running_mean", "bn1.running_var", "layer4.0.conv2.weight", "bn1.bias"])
@pytest.mark.parametrize("value", [float("nan"), -float("inf"), 1e39], ids=str)
def test_a_single_value_is_found(key: str, value: float, weights: dict[str, Tensor], tmp_path: Path) -> None:
    broken = weights[key].double()
    broken.view(-1)[-1] = value
    path = tmp_path / "weights.pt"
    torch.save({**weights, key: broken}, path)
    with pytest.raises(UserError, match=f"{key} holds values (that are not finite|beyond the range)"):
        load_backbone(path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_cast_and_told(kind: torch.dtype, weights: dict[str, Tensor], tmp_path: Path) -> None:
    other = {name: value.to(kind) if value.is_floating_point() else value for name, value in weights.items()}
    path = tmp_path / "weights.pt"
    torch.save(other, path)
    backbone, report = load_backbone(path)
    count = sum(value.is_floating_point() for name, value in weights.items() if not name.startswith("fc."))
    assert f"{count} of them cast from {str(kind).removeprefix('torch.')} to float32" in str(report)
    for name, value in backbone.state_dict().items():
        assert value.dtype == weights[name].dtype and torch.equal(value, other[name].to(value.dtype))
    torch.save(weights, path)
    assert "cast from" not in str(load_backbone(path)[1])


@pytest.mark.parametrize("key", [7, ("conv1", "weight"), None, 1.5, True])
def test_a_name_that_is_no_text_is_refused(key: Any, weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    for content in ({**weights, key: torch.ones(3)}, {"state_dict": {key: torch.ones(3), **weights}}):
        torch.save(content, path)
        with pytest.raises(UserError, match="which is no text: save a state dict") as error:
            load_backbone(path)
        assert repr(key) in sentence(error, path)


def test_names_from_a_file_cannot_write_on_the_terminal(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    for name in ("layer9.\x1b[2Jgone", "layer9.\nmgd-ssl: all is well", "layer9." + "x" * 100_000):
        torch.save({**weights, name: torch.ones(1)}, path)
        with pytest.raises(UserError) as error:
            load_backbone(path)
        assert sentence(error, path).isprintable() and len(str(error.value)) < 600
    prefixed = {f"encoder_q.{name}": value for name, value in weights.items()}
    torch.save({**prefixed, **{f"\x1b[2J{i}.weight": torch.ones(1) for i in range(50)}}, path)
    told = str(load_backbone(path)[1])
    assert told.isprintable() and "and 41 more" in told


def test_a_run_says_what_it_cannot_learn_from(weights: dict[str, Tensor], image_folder: Path, tmp_path: Path) -> None:
    """Found before anything is made."""
    path = tmp_path / "teacher.pt"
    torch.save({**weights, KEY: -weights[KEY]}, path)
    with pytest.raises(UserError, match="which no variance has"):
        pretrain(**tiny(image_folder, tmp_path / "run", teacher=path))
    with pytest.raises(UserError, match="which no variance has"):
        linear(checkpoint=path, data=image_folder, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()

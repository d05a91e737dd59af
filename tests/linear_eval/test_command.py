"""The command from end to end on a few images."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from linear_eval import linear
from mgd_ssl import cli
from mgd_ssl.config import Decoding
from mgd_ssl.data.sources import Labelled, scan_labelled
from mgd_ssl.errors import TrainingError, UserError
from mgd_ssl.networks.backbones import build_encoder
from mgd_ssl.networks.frozen import FrozenBackbone
from mgd_ssl.run.checkpoint import serialised
from mgd_ssl.run.result import Evaluation
from tests.linear_eval.conftest import BASE, LIVE, weights, write_protocol
from tests.runs import flags


def test_result_is_saved_with_its_protocol_and_not_computed_twice(settings: dict[str, Any]) -> None:
    evaluation, path = linear(**settings | {"seeds": (0, 1)})
    assert Evaluation.load(path).values == evaluation.values
    assert len(evaluation.values["top1"]) == 2
    assert "48 training and 12 validation images of 2 classes" in evaluation.protocol
    heads = sorted(settings["out"].rglob("head.pt"))
    written = [head.stat().st_mtime_ns for head in heads]
    again, _ = linear(**settings | {"seeds": (0, 1)})
    assert again.values == evaluation.values
    assert [head.stat().st_mtime_ns for head in heads] == written


def test_live_features_train_one_head(live_settings: dict[str, Any]) -> None:
    evaluation, _ = linear(**live_settings)
    assert evaluation.details["chosen"] == [{"lr": 0.5, "weight_decay": 0.0}]
    assert 0 <= evaluation.values["top1"][0] <= 100


def cache_files(settings: dict[str, Any]) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (settings["out"] / "linear_features").rglob("*.npy")}


def test_cached_features_serve_other_seeds_but_not_other_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    linear(**settings)
    first = cache_files(settings)
    assert first
    linear(**settings | {"seeds": (1,)})
    assert cache_files(settings) == first
    other = weights(tmp_path / "other.pt", seed=5)
    with pytest.raises(UserError, match="something else"):
        linear(**settings | {"checkpoint": other})
    shutil.rmtree(settings["out"] / "linear_small_seed0")
    linear(**settings | {"checkpoint": other})
    assert not cache_files(settings).items() <= first.items()


def test_a_result_is_not_that_of_other_labels(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the same names whose classes are numbered otherwise, as another data set may order them."""

    def numbered_backwards(train: Path, val: Path, how: Decoding) -> list[Labelled]:
        return [
            labelled._replace(labels=labelled.labels.max() - labelled.labels)
            for labelled in scan_labelled(train, val, how)
        ]

    linear(**settings)
    monkeypatch.setattr(sys.modules["linear_eval.evaluator"], "scan_labelled", numbered_backwards)
    with pytest.raises(UserError, match=r"something else \(train_labels: .*val_labels: "):
        linear(**settings)


def test_a_moved_buffer_voids_the_result(weights_file: Path) -> None:
    backbone = FrozenBackbone.load(weights_file)
    backbone.check_untouched()
    backbone.backbone.get_submodule("layer2.0.bn1").get_buffer("running_mean")[3] += 1e-3
    with pytest.raises(TrainingError, match=r"1 tensors, first layer2\.0\.bn1\.running_mean"):
        backbone.check_untouched()


def test_official_moco_checkpoints_are_read(settings: dict[str, Any], tmp_path: Path) -> None:
    encoder = build_encoder("thin_resnet10", 16)
    encoder.train()(torch.randn(8, 3, 48, 48))
    state = {f"module.encoder_q.{name}": value for name, value in encoder.state_dict().items()}
    path = tmp_path / "moco.pth.tar"
    path.write_bytes(serialised({"epoch": 200, "arch": "thin_resnet10", "state_dict": state}))
    assert cli.main(["linear", *flags(settings | {"checkpoint": path})]) == 0
    evaluation = Evaluation.load(next(settings["out"].glob("evaluation_*.json")))
    assert evaluation.arch == "thin_resnet10"
    plain = tmp_path / "plain.pt"  # the same backbone without MoCo around it
    plain.write_bytes(serialised({k: v for k, v in encoder.state_dict().items() if not k.startswith("fc.")}))
    assert linear(**settings | {"checkpoint": plain, "out": tmp_path / "plain"})[0].values == evaluation.values


def test_unreadable_images_are_told_with_the_flag_that_allows_them(settings: dict[str, Any], tmp_path: Path) -> None:
    data = shutil.copytree(settings["data"], tmp_path / "data")
    next((data / "train" / "circles").iterdir()).write_bytes(b"no image")
    with pytest.raises(
        TrainingError, match=r"1 of 48 images \(2.1%\) are unreadable, more than --max-unreadable = 0.01"
    ):
        linear(**settings | {"data": data})
    linear(**settings | {"data": data, "max_unreadable": 0.05})


@pytest.mark.parametrize("wrapped", [None, "state_dict", "model"])
def test_timms_resnets_are_read(
    settings: dict[str, Any], wrapped: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """timm's resnet18 has the names below: torchvision's, written out here; with num_classes=10 for its `fc`."""
    blocks = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    convolutions = {"conv1": (64, 3, 7), **{f"layer{i}.0.downsample.0": (32 * 2**i, 16 * 2**i, 1) for i in (2, 3, 4)}}
    for block in blocks:
        stage, out = int(block[5]), 32 * 2 ** int(block[5])
        convolutions[f"{block}.conv1"] = (out, out // 2 if block.endswith("0") and stage > 1 else out, 3)
        convolutions[f"{block}.conv2"] = (out, out, 3)
    generator = torch.Generator().manual_seed(0)
    state = {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    for name, (out, channels, edge) in convolutions.items():
        state[f"{name}.weight"] = (
            torch.randn(out, channels, edge, edge, generator=generator) * (2 / (out * edge**2)) ** 0.5
        )
        norm = name.replace("downsample.0", "downsample.1").replace("conv", "bn")
        state |= {f"{norm}.weight": torch.ones(out), f"{norm}.bias": torch.zeros(out)}
        state |= {f"{norm}.running_mean": torch.full((out,), 0.01), f"{norm}.running_var": torch.ones(out)}
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    path = tmp_path / "timm_resnet18.pth"
    path.write_bytes(serialised({wrapped: state, "epoch": 3} if wrapped else state))
    assert cli.main(["linear", *flags(settings | {"checkpoint": path})]) == 0
    assert capsys.readouterr().out.startswith("top-1 ")
    evaluation = Evaluation.load(next(settings["out"].glob("evaluation_*.json")))
    assert evaluation.arch == "resnet18"


def labelled(folder: Path, classes: dict[str, int]) -> None:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (36, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ({"a": 12, "b": 12}, {"a": 2, "c": 2}, "differ in classes"),
        ({"a": 24}, {"a": 4}, "single class 'a'"),
        ({"a": 12, "b": 12}, {".": 3}, "has no label"),
    ],
)
def test_labels_that_do_not_serve(
    settings: dict[str, Any], tmp_path: Path, train: dict[str, int], val: dict[str, int], message: str
) -> None:
    labelled(tmp_path / "data" / "train", train)
    (tmp_path / "data" / "val").mkdir()
    labelled_val = {name: count for name, count in val.items() if name != "."}
    labelled(tmp_path / "data" / "val", labelled_val)
    for i in range(val.get(".", 0)):
        Image.new("RGB", (36, 36)).save(tmp_path / "data" / "val" / f"{i}.png")
    with pytest.raises(UserError, match=message):
        linear(**settings | {"data": tmp_path / "data"})
    assert not settings["out"].exists()


def test_what_is_missing_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for changes, message in (
        ({"checkpoint": tmp_path / "empty"}, "holds neither encoder.pt nor checkpoints"),
        ({"checkpoint": tmp_path / "no.pt"}, "does not exist"),
        ({"data": tmp_path / "nowhere"}, "is not there"),
        ({"protocol": "swep"}, "did you mean 'sweep'"),
        ({"out": None}, "out is not set"),
        ({"arch": "resnet18"}, "does not fit resnet18"),
    ):
        with pytest.raises(UserError, match=message):
            linear(**settings | changes)
    assert not settings["out"].exists()


@pytest.mark.parametrize("protocol", [LIVE, BASE | {"curvature": 0.1}], ids=["live", "stretched search"])
def test_two_processes_end_with_the_head_of_one(
    protocol: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["protocol"] = str(write_protocol(tmp_path / "p.toml", protocol))
    one, _ = linear(**settings)
    arguments = [f"--{key}={settings[key]}" for key in ("checkpoint", "data", "protocol", "workers")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    command += ["-m", "linear_eval", *arguments, f"--out={tmp_path / 'two'}", "--image-size=32", "--runtime.device=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads(next((tmp_path / "two").glob("evaluation_*.json")).read_text())
    assert two["values"]["top1"] == pytest.approx(one.values["top1"])
    heads = [torch.load(next(out.rglob("head.pt")), weights_only=True) for out in (settings["out"], tmp_path / "two")]
    torch.testing.assert_close(heads[0]["weight"], heads[1]["weight"], rtol=1e-4, atol=1e-5)

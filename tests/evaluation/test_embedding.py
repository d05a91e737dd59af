"""Features of a source in a file: against the bare network, after any stop, over processes, and searched."""

import csv
import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn
from torchvision.models.resnet import BasicBlock

from mgd_ssl.cli import main
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.config import EmbedConfig
from mgd_ssl.evaluation.embedding import Embedded, embed
from mgd_ssl.evaluation.feature_rows import FeatureRows
from mgd_ssl.evaluation.layer import LayerOutput
from mgd_ssl.evaluation.partwise import Part
from mgd_ssl.evaluation.unfinished import UnfinishedRows
from mgd_ssl.networks.backbones import ThinResNet, build_backbone
from tests.conftest import write_images
from tests.two_processes import embed_as_rank_of_two

SIZE = 48
QUICK: dict[str, Any] = {"workers": 0, "image_size": SIZE, "batch_size": 5, "runtime": {"device": "cpu", "threads": 1}}


@pytest.fixture(scope="module")
def network() -> ThinResNet:
    torch.manual_seed(4)
    network = build_backbone("thin_resnet10")
    assert isinstance(network, ThinResNet)
    with torch.no_grad():
        network(torch.rand(8, 3, SIZE, SIZE))
    return network.eval()


@pytest.fixture
def weights(network: nn.Module, tmp_path: Path) -> Path:
    torch.save({k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def embedded(weights: Path, data: Path, out: Path, **changes: Any) -> Embedded:
    return embed(EmbedConfig(checkpoint=weights, data=data, out=out, **{**QUICK, **changes}))


def images_of(folder: Path) -> torch.Tensor:
    """What the network sees, one image at a time, normalised here."""
    listed = ImageList.scan(folder)
    pixels = torch.cat([CentreCrops(listed, SIZE, 0).__getitems__([i]).images for i in range(len(listed))])
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean) / deviation).permute(0, 3, 1, 2)


@torch.no_grad()
def features(network: nn.Module, folder: Path) -> np.ndarray:
    maps = nn.Sequential(*list(network.children())[:-2])(images_of(folder))  # without pooling and classifier
    return maps.mean(dim=(2, 3)).numpy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


NAMES = [f"{label}/{i:04d}.jpg" for label in ("circles", "squares") for i in range(24)]


@pytest.mark.parametrize("ending", [".npy", ".npz", ".csv", ".parquet"])
def test_every_kind_of_file_has_features_names_and_labels_in_order(
    ending: str, network: nn.Module, weights: Path, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"features{ending}"
    told = embedded(weights, image_folder / "train", out)
    labels = ["circles"] * 24 + ["squares"] * 24
    if ending == ".npy":
        found = np.load(out)
        rows = list(csv.reader((tmp_path / "features_names.csv").open()))
        assert rows == [["name", "label"], *map(list, zip(NAMES, labels, strict=True))]
    elif ending == ".npz":
        content = np.load(out)
        found = content["features"]
        assert content["names"].tolist() == NAMES
        assert content["classes"][content["labels"]].tolist() == labels
    elif ending == ".csv":
        rows = list(csv.reader(out.open()))
        assert [row[:2] for row in rows[1:]] == list(map(list, zip(NAMES, labels, strict=True)))
        assert rows[0][:3] == ["name", "label", "f0"]
        found = np.array([row[2:] for row in rows[1:]], np.float32)
    else:
        table = pyarrow.parquet.read_table(out)
        assert table["name"].to_pylist() == NAMES and table["label"].to_pylist() == labels
        found = np.array(table["features"].to_pylist(), np.float32)
    assert found.dtype == np.float32 and told.shape == (128,) and told.num_images == 48
    close(found, features(network, image_folder / "train"))
    kept = json.loads((tmp_path / f"features{ending}.json").read_text())
    assert kept["arch"] == "thin_resnet10" and kept["shape"] == [128] and not kept["unreadable"]
    names = {path.name for path in tmp_path.iterdir()} - {"features_names.csv"}
    assert names == {"weights.pt", f"features{ending}", f"features{ending}.json"}  # nothing unfinished is left


def test_maps_of_a_layer_and_their_means(
    network: ThinResNet, weights: Path, image_folder: Path, tmp_path: Path
) -> None:
    data = image_folder / "val"
    embedded(weights, data, tmp_path / "maps.npy", layer="layer1.0.bn2", maps=True)
    embedded(weights, data, tmp_path / "means.npy", layer="layer1.0.bn2", normalise=True)
    with torch.no_grad():
        stem = network.maxpool(network.relu(network.bn1(network.conv1(images_of(data)))))
        block = network.layer1[0]
        assert isinstance(block, BasicBlock)
        expected = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(stem))))).numpy()  # before an in-place sum
    close(np.load(tmp_path / "maps.npy"), expected)
    means = expected.mean(axis=(2, 3))
    close(np.load(tmp_path / "means.npy"), means / np.linalg.norm(means, axis=1, keepdims=True))


def test_a_layer_that_is_none_is_named(network: nn.Module) -> None:
    with pytest.raises(UserError, match="layer is 'layer5', which is no module of this network, did you mean 'layer"):
        LayerOutput(network, "layer5")
    with pytest.raises(UserError, match=r"layer is 'layer1\.0\.downsample'"):
        LayerOutput(network, "layer1.0.downsample")


def test_a_folder_without_classes_and_unreadable_images(network: nn.Module, weights: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_images(data, 12)
    expected = features(network, data)
    (data / "0003.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 of 12 images in .* \(8.3%\) are unreadable, first 0003.jpg"):
        embedded(weights, data, tmp_path / "features.npz")
    told = embedded(weights, data, tmp_path / "features.npz", max_unreadable=0.1)
    found = np.load(tmp_path / "features.npz")
    assert set(found) == {"features", "names"} and list(told.unreadable) == ["0003.jpg"]
    assert np.isnan(found["features"][3]).all()
    close(np.delete(found["features"], 3, axis=0), np.delete(expected, 3, axis=0))
    near = embedded(
        weights, data, tmp_path / "features.npz", max_unreadable=0.1, search=data / "0005.jpg", nearest=12
    ).neighbours
    assert near[0].name == "0005.jpg" and near[0].label == "" and len(near) == 11  # one has no features


def test_neighbours_are_those_of_a_plain_search(
    network: nn.Module, weights: Path, image_folder: Path, tmp_path: Path
) -> None:
    query = image_folder / "val" / "squares" / "0002.jpg"
    for ending in (".npy", ".npz", ".csv", ".parquet"):
        told = embedded(weights, image_folder / "train", tmp_path / f"f{ending}", search=query, nearest=5)
        bank = features(network, image_folder / "train")
        bank /= np.linalg.norm(bank, axis=1, keepdims=True)
        asked = features(network, image_folder / "val")[6 + 2]
        similarity = bank @ (asked / np.linalg.norm(asked))
        best = np.argsort(-similarity)[:5]
        assert [each.name for each in told.neighbours] == [NAMES[i] for i in best]
        assert [each.label for each in told.neighbours] == [NAMES[i].split("/")[0] for i in best]
        close(np.array([each.similarity for each in told.neighbours]), similarity[best])


def test_a_stopped_one_goes_on_where_it_was(
    weights: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["embed", str(weights), "--data", str(image_folder / "train"), "--workers", "0", "--batch-size", "5"]
    words += ["--image-size", str(SIZE), "--runtime.device", "cpu", "--runtime.threads", "1"]
    assert main([*words, "--out", str(tmp_path / "whole.npy")]) == 0
    asked, part = list[Sequence[int]](), FeatureRows.part

    def stopped(self: FeatureRows, rows: np.ndarray, *more: Any) -> Part:
        asked.append(rows.tolist())
        if len(asked) == 2:
            signal.raise_signal(signal.SIGTERM)
        return part(self, rows, *more)

    monkeypatch.setattr(FeatureRows, "part", stopped)
    assert main([*words, "--out", str(tmp_path / "half.npy")]) == 75
    assert not (tmp_path / "half.npy").exists() and asked[0] == list(range(5))
    assert main([*words, "--out", str(tmp_path / "half.npy")]) == 0
    assert asked[2][0] == 5  # the first five are not computed again
    assert np.array_equal(np.load(tmp_path / "half.npy"), np.load(tmp_path / "whole.npy"))
    asked.clear()
    assert main([*words, "--out", str(tmp_path / "half.npy")]) == 0
    assert not asked  # it is there


def test_rows_that_are_not_what_was_written_are_computed_again(tmp_path: Path) -> None:
    rows = UnfinishedRows(tmp_path / "u", "key")
    rows.append(np.ones((3, 4)), (2, 2), {"a": "why"})
    with pytest.raises(UserError, match="is written by another process"):
        in_another_process(tmp_path / "u")
    rows.close()
    again = UnfinishedRows(tmp_path / "u", "key")
    assert (again.done, again.shape, again.unreadable) == (3, (2, 2), {"a": "why"})
    again.append(np.full((2, 4), 7.0), (2, 2), {})
    assert again.table().tolist() == [[1.0] * 4] * 3 + [[7.0] * 4] * 2
    again.close()
    content = bytearray((tmp_path / "u" / "rows").read_bytes())
    (tmp_path / "u" / "rows").write_bytes(bytes(content) + b"half a row")  # as a kill leaves it
    cut = UnfinishedRows(tmp_path / "u", "key")
    assert cut.done == 5 and (tmp_path / "u" / "rows").stat().st_size == len(content)
    cut.close()
    content[9] ^= 1
    (tmp_path / "u" / "rows").write_bytes(content)
    assert UnfinishedRows(tmp_path / "u", "key").done == 0
    assert UnfinishedRows(tmp_path / "u", "other").done == 0


def in_another_process(folder: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from mgd_ssl.errors import exit_code\n"
        "from mgd_ssl.evaluation.unfinished import UnfinishedRows\n"
        f"sys.exit(exit_code(lambda: UnfinishedRows(Path({str(folder)!r}), 'key') and 0))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if answer.returncode == 2:
        raise UserError(answer.stderr)


def test_a_file_of_other_settings_is_left_alone(weights: Path, image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.npy"
    embedded(weights, image_folder / "val", out)
    before = out.read_bytes()
    with pytest.raises(UserError, match="is there already, of other settings, images or weights"):
        embedded(weights, image_folder / "val", out, normalise=True)
    with pytest.raises(UserError, match="maps is true without a layer"):
        embedded(weights, image_folder / "val", tmp_path / "g.npy", maps=True)
    with pytest.raises(UserError, match="is not a file: pass --search an image"):
        embedded(weights, image_folder / "val", out, search=tmp_path / "none.jpg")
    with pytest.raises(ValueError, match=r"out is 'f.txt': end it in .npy"):
        EmbedConfig(checkpoint=weights, data=image_folder, out=Path("f.txt"))
    assert out.read_bytes() == before


def test_two_processes_equal_one(weights: Path, image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "val", tmp_path / "data")
    write_images(tmp_path / "data" / "circles", 7, seed=5)  # thirteen: one process has more
    settings = {"checkpoint": weights, "data": tmp_path / "data", "out": tmp_path / "two.npy", **QUICK}
    spawn(embed_as_rank_of_two, (settings, tmp_path), nprocs=2)
    embedded(weights, tmp_path / "data", tmp_path / "one.npy")
    close(np.load(tmp_path / "two.npy"), np.load(tmp_path / "one.npy"))

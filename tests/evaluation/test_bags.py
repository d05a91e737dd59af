"""`mgd-ssl bags`: against a plain search, over two processes, and after any stop."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from launchers.launch import main as launch
from mgd_ssl.cli import main
from mgd_ssl.commands import check
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.errors import Interrupted, UserError
from mgd_ssl.evaluation.bags import make_bags
from mgd_ssl.evaluation.config import BagsConfig
from mgd_ssl.evaluation.feature_rows import FeatureRows
from mgd_ssl.evaluation.neighbours import Neighbours
from mgd_ssl.evaluation.partwise import Part
from mgd_ssl.networks.backbones import build_backbone, trunk
from tests.conftest import write_images
from tests.ranks import on_ranks

SIZE, COUNT = 48, 41  # images: one process has more
QUICK: dict[str, Any] = {
    "workers": 0, "image_size": SIZE, "batch_size": 4, "shard_images": 9, "runtime": {"device": "cpu", "threads": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, COUNT, seed=11)
    return folder


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(4)
    network = build_backbone("thin_resnet10")
    with torch.no_grad():
        network(torch.rand(8, 3, SIZE, SIZE))
    return network.eval()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, images: Path, network: nn.Module) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("teacher") / "weights.pt"
    torch.save({k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}, path)
    return {"teacher": path, "images": images, **QUICK}


@pytest.fixture(scope="module")
def expected(images: Path, network: nn.Module) -> np.ndarray:
    """By a loop over a table of all cosines."""
    listed = ImageList.scan(images)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    rows = []
    for i in range(len(listed)):
        pixels = CentreCrops(listed, SIZE, 0).__getitems__([i]).images
        with torch.no_grad():
            rows.append(trunk(network)(((pixels / 255 - mean) / deviation).permute(0, 3, 1, 2))[0])
    features = F.normalize(torch.stack(rows).double(), dim=1)
    cosine = (features @ features.T).fill_diagonal_(-2)
    return cosine.argsort(dim=1, descending=True)[:, :5].numpy()


def bags_in(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["neighbours"]


def made(settings: dict[str, Any]) -> dict[str, Any]:
    """What a rank is told."""
    return make_bags(BagsConfig(**settings))


def test_two_processes_find_what_one_finds(settings: dict[str, Any], expected: np.ndarray, tmp_path: Path) -> None:
    make_bags(BagsConfig(**settings, out=tmp_path / "one.npz"))
    assert np.array_equal(bags_in(tmp_path / "one.npz"), expected)
    told = on_ranks(2, tmp_path / "ranks", made, {**settings, "out": tmp_path / "two.npz"})
    assert np.array_equal(bags_in(tmp_path / "two.npz"), expected)
    assert told[0] == told[1] and told[0]["num_images"] == COUNT
    assert {path.name for path in tmp_path.iterdir()} == {"one.npz", "two.npz", "ranks"}  # nothing unfinished is left


def watched(monkeypatch: pytest.MonkeyPatch, stop: tuple[str, int]) -> dict[str, list[int]]:
    """Rows that are asked for, by kind; in one part of one kind a signal comes."""
    asked: dict[str, list[int]] = {"features": [], "neighbours": []}
    for name, owner in (("features", FeatureRows), ("neighbours", Neighbours)):

        def part(self: Any, rows: np.ndarray, *more: Any, name: str = name, real: Any = owner.part) -> Part:
            asked[name].append(int(rows[0]))
            if (name, len(asked[name])) == stop:
                signal.raise_signal(signal.SIGTERM)
            found: Part = real(self, rows, *more)
            return found

        monkeypatch.setattr(owner, "part", part)
    return asked


@pytest.mark.parametrize("kind", ["features", "neighbours"])
def test_what_was_stopped_goes_on_where_it_was(
    kind: str, settings: dict[str, Any], expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BagsConfig(**settings, out=tmp_path / "bags.npz")
    asked = watched(monkeypatch, (kind, 2))
    with pytest.raises(Interrupted, match="the same command continues from there"):
        make_bags(config)
    assert not config.out.exists()
    before = {name: list(rows) for name, rows in asked.items()}
    make_bags(config)
    assert asked[kind][2] == before[kind][1] > 0  # the first part is not computed again
    if kind == "neighbours":
        assert asked["features"] == before["features"]
    assert np.array_equal(bags_in(config.out), expected)


def test_a_finished_file_is_found_and_another_one_left_alone(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = watched(monkeypatch, ("", 0))
    out = tmp_path / "bags.npz"
    words = ["bags", "--teacher", str(settings["teacher"]), "--images", str(settings["images"]), "--out", str(out)]
    words += ["--image-size", str(SIZE), "--workers", "0", "--runtime.device", "cpu", "--runtime.threads", "1"]
    assert main(words) == 0 and main(words) == 0
    assert asked == {"features": [0], "neighbours": [0]}
    assert capsys.readouterr().out == f"41 bags of 5 images: {out}\n41 bags of 5 images: {out}, as before\n"
    before = out.read_bytes()
    with pytest.raises(UserError, match="is there already, of other settings, images or weights: remove it"):
        make_bags(BagsConfig(**settings, out=out, neighbours=4))
    assert out.read_bytes() == before
    out.write_bytes(before[:100])
    with pytest.raises(UserError, match="is there already, of other settings"):
        make_bags(BagsConfig(**settings, out=out))
    with pytest.raises(UserError, match=r"neighbours is 41 and .* holds 41 images: set it below that"):
        make_bags(BagsConfig(**settings, out=tmp_path / "more.npz", neighbours=41))


def test_a_file_that_cannot_be_read_is_near_whom_its_replacement_is(settings: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_images(data, 8)
    (data / "0003.jpg").write_bytes(b"no image")
    config = BagsConfig(**{**settings, "images": data, "neighbours": 2}, out=tmp_path / "bags.npz")
    with pytest.raises(UserError, match=r"1 of 8 images in .* \(12.5%\) are unreadable, first 0003.jpg"):
        make_bags(config)
    make_bags(config.model_copy(update={"max_unreadable": 0.2}))
    found = bags_in(config.out)
    assert (found >= 0).all() and not (found == np.arange(8)[:, None]).any()
    twin = int(found[3, 0])
    assert found[twin, 0] == 3 and found[3, 1] == found[twin, 1]


def test_the_launchers_take_it(settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--teacher", str(settings["teacher"]), "--images", str(settings["images"])]
    assert check("bags", [*words, "--out", str(tmp_path / "bags.npz")]) == tmp_path
    line = ["slurm", "--dry-run", "--tasks-per-node", "2", "--", "bags", *words, "--out", str(tmp_path / "bags.npz")]
    assert launch(line) == 0
    assert "# mgd-ssl bags --teacher" in capsys.readouterr().out

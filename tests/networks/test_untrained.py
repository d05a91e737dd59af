"""`random:ARCH[:SEED]` in place of a checkpoint: the encoder a run begins with, and called random everywhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mgd_ssl import UserError, pretrain
from mgd_ssl.cli import main
from mgd_ssl.commands import check
from mgd_ssl.networks.untrained import load_evaluated, untrained
from mgd_ssl.report.tables import full_frame, rows
from mgd_ssl.run.read import read_runs
from mgd_ssl.run.result import Evaluation
from tests.linear_eval.conftest import BASE, write_protocol
from tests.runs import flags, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """A run of seed 5 that was monitored with k = 3."""
    knn = {"train": image_folder / "train", "val": image_folder / "val", "k": 3}
    settings = tiny(image_folder, tmp_path_factory.mktemp("u") / "run", knn=knn, optim={"epochs": 1}, seed=5)
    return Path(pretrain(**settings).out)


@pytest.fixture
def common(image_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "checkpoint": "random:thin_resnet10:5", "data": image_folder, "out": tmp_path / "out", "image-size": 32,
        "workers": 0, "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip


def test_it_is_the_encoder_a_run_of_that_seed_begins_with(
    run: Path, common: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["knn", *flags(common | {"k": 3})]) == 0
    assert "k-NN of random:thin_resnet10:5 (thin_resnet10, untrained)" in capsys.readouterr().out
    [path] = common["out"].glob("*.json")
    assert path.name == "evaluation_knn_k3_T0.07_random_thin_resnet10_5.json"
    saved = json.loads(path.read_text())
    assert saved["checkpoint"] == "random:thin_resnet10:5" and "an untrained" in saved["details"]["weights"]
    knn = json.loads((run / "result.json").read_text())["knn"]
    assert (saved["values"]["top1"], saved["values"]["top5"]) == ([knn["random_top1"]], [knn["random_top5"]])


def test_seeds_differ_and_the_default_is_zero() -> None:
    states = [load_evaluated(Path(f"random:thin_resnet10{seed}"))[0].state_dict() for seed in ("", ":0", ":1")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])
    assert len({load_evaluated(Path(f"random:thin_resnet10:{seed}"))[1].sha256 for seed in range(3)}) == 3


def test_results_beside_a_runs_own_do_not_take_their_place(
    run: Path, common: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    here = common | {"out": tmp_path / "run"}
    protocol = write_protocol(tmp_path / "small.toml", BASE)
    for checkpoint in (run, "random:thin_resnet10"):
        assert main(["knn", *flags(here | {"k": 3, "checkpoint": checkpoint})]) == 0
        assert main(["linear", *flags(here | {"protocol": protocol, "checkpoint": checkpoint})]) == 0
    assert "random:thin_resnet10:0, an untrained thin_resnet10: top-1" in capsys.readouterr().out
    suffixes = ("", "_random_thin_resnet10_0")
    names = {f"evaluation_{kind}{suffix}.json" for kind in ("knn_k3_T0.07", "linear_small") for suffix in suffixes}
    assert {path.name for path in (tmp_path / "run").glob("evaluation_*.json")} == names
    table = full_frame(rows(read_runs([tmp_path / "run"])))
    for _, row in table[table["source"].str.startswith("evaluation_")].iterrows():
        assert row["top1"] == pytest.approx(Evaluation.load(tmp_path / "run" / row["source"]).mean("top1"))
        told = (row["method"], row["epochs"], row["state"])
        expected = (
            ("random", 0, "of random:thin_resnet10:0") if "random" in row["source"] else ("MoCo v2", 1, "finished")
        )
        assert told == expected
    assert not (tmp_path / "run" / "linear_small_random_thin_resnet10_0_seed0" / "encoder.pt").exists()


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_it_can_be_launched_and_wants_out(
    command: str, common: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(command, flags(common)) == common["out"]
    (tmp_path / "config.json").write_text("{}")  # in a run's folder, which is not that of the encoder
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="pass --out"):
        check(command, flags({key: value for key, value in common.items() if key != "out"}))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("random:resnet19", "unknown architecture 'resnet19', did you mean 'resnet1"),
        ("random:", "unknown architecture ''"),
        ("random:resnet18:x", "the seed 'x' is no whole number from 0 on"),
        ("random:resnet18:-1", "the seed '-1' is no whole number"),
        ("random:resnet18:", "the seed '' is no whole number"),
    ],
)
@pytest.mark.parametrize("command", ["knn", "linear"])
def test_what_is_none_is_one_sentence(command: str, text: str, told: str, common: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=told):
        check(command, flags(common | {"checkpoint": text}))


def test_another_architecture_is_refused_and_files_are_files() -> None:
    with pytest.raises(UserError, match="is a resnet18, not a resnet50: leave --arch out"):
        load_evaluated(Path("random:resnet18:0"), "resnet50")
    assert untrained(Path("runs/random:resnet18")) is None

"""`mgd-ssl knn` end to end on a tiny run, its errors, and two processes against one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn

from mgd_ssl.cli import main
from mgd_ssl.data.pack import pack
from mgd_ssl.data.sources import scan_labelled
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.accuracy import Accuracy
from mgd_ssl.evaluation.features import FeatureExtractor
from mgd_ssl.evaluation.knn import knn_accuracies
from mgd_ssl.networks.backbones import build_backbone, trunk
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.run.folder import find_weights
from mgd_ssl.run.result import Evaluation
from mgd_ssl.tasks.student import pretrain
from tests.conftest import write_images
from tests.two_processes import CPU, everything, rank_of_two


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """A finished run of one epoch at 48 pixels."""
    out = tmp_path_factory.mktemp("knn") / "run"
    pretrain(
        out=out, student="thin_resnet10", data={"train": image_folder / "train", "image_size": 48, "workers": 0},
        moco={"queue_size": 64, "dim": 16}, optim={"epochs": 1, "batch_size": 16, "warmup_epochs": 0},
        runtime={"threads": 1, "device": "cpu"},
    )  # fmt: skip
    return out


@pytest.fixture
def knn(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command; returns exit code, stdout and stderr."""

    def call(checkpoint: Path, *flags: str, data: Path = image_folder) -> tuple[int, str, str]:
        args = ["--checkpoint", str(checkpoint), "--data", str(data), "--workers", "0"]
        code = main(["knn", *args, "--runtime.device", "cpu", "--runtime.threads", "1", *flags])
        return code, *capsys.readouterr()

    return call


Command = Callable[..., tuple[int, str, str]]


def refusal(outcome: tuple[int, str, str]) -> str:
    """The one sentence of a refused command."""
    code, _, stderr = outcome
    assert code == 2 and stderr.startswith("mgd-ssl: ") and len(stderr.splitlines()) == 1
    return stderr


def test_a_run_is_evaluated_and_every_number_has_its_protocol(run: Path, knn: Command, tmp_path: Path) -> None:
    code, stdout, stderr = knn(
        run, "--k", "1", "5", "--temperature", "0.07", "0.5", "--few-label", "--out", str(tmp_path)
    )
    assert code == 0
    saved = {path.stem.removeprefix("evaluation_knn_"): Evaluation.load(path) for path in tmp_path.glob("*.json")}
    few = {"k1_T0.07_1pct", "k1_T0.5_1pct", "k1_T0.07_10pct", "k1_T0.5_10pct"}
    assert saved.keys() == {"k1_T0.07", "k1_T0.5", "k5_T0.07", "k5_T0.5"} | few
    assert "with 1 % of the labels k = 5 is left out: only 2 images vote" in stderr
    for name, evaluation in saved.items():
        assert evaluation.protocol in stdout
        assert evaluation.arch == "thin_resnet10" and evaluation.checkpoint == str(run / "encoder.pt")
        assert len(evaluation.values["top1"]) == len(evaluation.values["top5"]) == (3 if "pct" in name else 1)
    assert saved["k5_T0.07"].protocol == (
        "k-NN k=5 T=0.07, 48 voting and 12 classified images, centre crop 48"  # the size of the run
    )
    assert saved["k1_T0.07_10pct"].protocol == (
        "k-NN k=1 T=0.07, 4 (10 % of each class, one at least, mean over subsets of seeds 0, 1, 2) voting and "
        "12 classified images, centre crop 48"
    )


def test_numbers_are_those_of_the_monitor_protocol(run: Path, knn: Command, image_folder: Path) -> None:
    assert knn(run, "--k", "7")[0] == 0
    saved = Evaluation.load(run / "evaluation_knn_k7_T0.07.json")  # without --out, beside the run's results
    sets = scan_labelled(image_folder / "train", image_folder / "val")
    network = trunk(load_backbone(run / "encoder.pt")[0])
    bank, queries = (
        FeatureExtractor(network, CPU, 48)(labelled, np.arange(len(labelled.images)))
        for labelled in sets
    )  # fmt: skip
    accuracy = knn_accuracies(bank, queries, [7], [0.07])[7, 0.07]
    assert saved.values == {"top1": [accuracy.top1], "top5": [accuracy.top5]}


def test_an_unfinished_run_is_evaluated_at_its_newest_whole_checkpoint(run: Path, tmp_path: Path, knn: Command) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "encoder.pt").unlink()
    (unfinished / "checkpoints" / "step_99999999.pt").write_bytes(b"PK\x03\x04 cut off")
    newest = sorted((run / "checkpoints").iterdir())[-1].name
    assert find_weights(unfinished) == unfinished / "checkpoints" / newest
    outcomes = [knn(folder, "--k", "5", "--out", str(tmp_path / folder.name)) for folder in (run, unfinished)]
    assert [code for code, _, _ in outcomes] == [0, 0]
    first, second = (Evaluation.load(tmp_path / f.name / "evaluation_knn_k5_T0.07.json") for f in (run, unfinished))
    assert first.values == second.values


def test_a_plain_file_is_evaluated_at_the_size_asked_for(run: Path, tmp_path: Path, knn: Command) -> None:
    shutil.copy(run / "encoder.pt", tmp_path / "weights.pt")
    code, stdout, _ = knn(tmp_path / "weights.pt", "--k", "3", "--image-size", "32")
    assert code == 0 and "centre crop 32" in stdout and "pass --out FOLDER" in stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.pt"]


def test_find_weights_refuses_what_holds_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist: pass a checkpoint"):
        find_weights(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds neither encoder.pt nor checkpoints/step_\*.pt"):
        find_weights(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000001.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--k", "1", "49"], "k is 49 but only 48 images vote: pass smaller numbers to --k"),
        (["--k", "3", "--few-label"], "1 % of the labels are 2 images, fewer than the smallest k, 3"),
        (["--k", "1", "--arch", "resnet18"], "does not fit resnet18"),
        (["--k", "1", "--out", "/dev/null/results"], "/dev/null/results cannot be written"),
    ],
)
def test_bad_settings_are_one_sentence_and_leave_nothing(
    run: Path, tmp_path: Path, knn: Command, flags: list[str], sentence: str
) -> None:
    flags = flags if "--out" in flags else [*flags, "--out", str(tmp_path / "out")]
    assert sentence in refusal(knn(run, *flags))
    assert not (tmp_path / "out").exists()


def remove_val(data: Path) -> None:
    shutil.rmtree(data / "val")


def rename_class(data: Path) -> None:
    (data / "val" / "circles").rename(data / "val" / "discs")


def put_images_into_no_class(data: Path) -> None:
    write_images(data / "val", 1)


def leave_one_class(data: Path) -> None:
    shutil.rmtree(data / "train" / "circles")
    shutil.rmtree(data / "val" / "circles")


def damage_images(data: Path) -> None:
    (data / "train" / "circles" / "0003.jpg").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (remove_val, "val is not there: --data needs train/<class>/* and val/<class>/* in it"),
        (rename_class, "differ in classes (circles, discs): make them the same"),
        (put_images_into_no_class, "0000.jpg has no label: put images into one folder a class"),
        (leave_one_class, "holds the single class 'squares'"),
        (damage_images, "1 of 48 images in"),
    ],
)
def test_bad_folders_are_one_sentence(
    run: Path, image_folder: Path, tmp_path: Path, knn: Command, harm: Callable[[Path], None], sentence: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    harm(data)
    assert sentence in refusal(knn(run, "--k", "1", "--out", str(tmp_path / "out"), data=data))
    assert not (tmp_path / "out").exists()


def test_a_few_unreadable_images_are_replaced_and_told(
    run: Path, image_folder: Path, tmp_path: Path, knn: Command
) -> None:
    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    damage_images(data)
    code, stdout, stderr = knn(run, "--k", "1", "--max-unreadable", "0.1", "--out", str(tmp_path / "out"), data=data)
    assert code == 0 and "1 unreadable images replaced" in stdout and "circles/0003.jpg" in stderr
    saved = json.loads((tmp_path / "out" / "evaluation_knn_k1_T0.07.json").read_text())
    assert list(saved["details"]["unreadable"]["train"]) == ["circles/0003.jpg"]


def test_what_is_required_is_said(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    assert main(["knn"]) == 2
    assert "checkpoint is not set: pass --checkpoint" in capsys.readouterr().err
    assert main(["knn", "--checkpoint", str(run)]) == 2
    assert "data is not set: pass --data" in capsys.readouterr().err


def test_the_image_whose_features_are_not_finite_is_named(run: Path, tmp_path: Path, knn: Command) -> None:
    backbone = build_backbone("thin_resnet10")
    backbone(torch.rand(8, 3, 48, 48))  # BatchNorms see data
    state = backbone.state_dict()
    state["bn1.weight"].fill_(1e38)  # finite, but what comes out is not
    torch.save(state, tmp_path / "weights.pt")
    sentence = refusal(knn(tmp_path / "weights.pt", "--k", "1", "--image-size", "48"))
    assert "train/circles/0000.jpg has features that are not finite: use an earlier checkpoint" in sentence


@pytest.mark.parametrize("shards", [False, True])
def test_two_processes_equal_one(image_folder: Path, tmp_path: Path, shards: bool) -> None:
    if shards:
        pack(images=image_folder / "train", out=tmp_path / "shards", shard_images=7, workers=0)
    spawn(rank_of_two, (tmp_path / "shards" if shards else image_folder / "train", tmp_path), nprocs=2)
    found, accuracies = everything(image_folder / "train", [47, 1, 12])
    for rank in range(2):
        features, rows, sentence = json.loads((tmp_path / f"{rank}.json").read_text())
        for (values, labels), one in zip(features, found, strict=True):
            assert np.array_equal(np.array(values, dtype=np.float32), one.values) and labels == one.labels.tolist()
        assert {(k, t): Accuracy(*accuracy) for (k, t), accuracy in rows} == accuracies
        assert "circles/0003.jpg has features that are not finite" in sentence


def test_shards_give_the_table_of_their_folders(run: Path, knn: Command, image_folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        pack(images=image_folder / split, out=tmp_path / "shards" / split, shard_images=7, workers=0)
    tables = []
    for data in (image_folder, tmp_path / "shards"):
        code, _, _ = knn(run, "--k", "1", "5", "--out", str(tmp_path / data.name), data=data)
        assert code == 0
        found = sorted((tmp_path / data.name).glob("*.json"))
        tables.append({path.name: Evaluation.load(path).values for path in found})
    assert tables[0] == tables[1] and len(tables[0]) == 2

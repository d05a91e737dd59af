"""A finished run is trained for more epochs, in a folder of its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mgd_ssl.cli import main
from mgd_ssl.commands.pretrain import read
from mgd_ssl.files import sha256_of
from tests.runs import flags, rows, tiny


@pytest.fixture(scope="module")
def parent(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parent") / "run"
    assert main(["pretrain", *flags(tiny(image_folder, out, seed=4))]) == 0
    return out


def test_it_begins_with_the_last_weights_and_a_new_schedule(
    parent: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[dict[str, torch.Tensor]]()
    from mgd_ssl.tasks.pretraining import Pretraining

    batches = Pretraining.batches

    def watched(self: Pretraining, first_step: int):  # type: ignore[no-untyped-def]
        begun.append({name: value.clone() for name, value in self.module.moco.encoder_q.state_dict().items()})
        return batches(self, first_step)

    monkeypatch.setattr(Pretraining, "batches", watched)
    out = tmp_path / "more"
    knn = ["--knn.train", str(image_folder / "train"), "--knn.val", str(image_folder / "val"), "--knn.k", "3"]
    assert main(["pretrain", "--more-epochs", "2", str(parent), "--out", str(out), "--optim.lr", "0.01", *knn]) == 0
    last = parent / "checkpoints" / "step_00000009.pt"
    state = torch.load(last, weights_only=True)["state_dict"]
    for name, value in begun[0].items():  # the projection head too
        assert torch.equal(value, state[f"module.encoder_q.{name}"]), name
    saved = json.loads((out / "config.json").read_text())
    assert saved["student_weights"]["sha256"] == sha256_of(last)
    assert saved["config"]["student_weights"] == str(last) and saved["config"]["seed"] == 5
    assert (saved["config"]["optim"]["epochs"], saved["config"]["optim"]["lr"]) == (2, 0.01)
    old = json.loads((parent / "config.json").read_text())["config"]
    kept = ("student", "moco", "mgd", "data")
    assert {key: saved["config"][key] for key in kept} == {key: old[key] for key in kept}
    assert json.loads((out / "result.json").read_text())["steps"] == 6
    first, *_ = [row for row in rows(out) if row["kind"] == "knn"]
    # the line of a random encoder is not that of the trained one it began with
    assert main(["knn", "--checkpoint", "random:thin_resnet10:5", "--data", str(image_folder), "--k", "3",
                 "--image-size", "32", "--out", str(tmp_path / "random"), "--workers", "0"]) == 0  # fmt: skip
    (evaluation,) = (tmp_path / "random").glob("evaluation_knn_*.json")
    assert first["random_top1"] == pytest.approx(json.loads(evaluation.read_text())["values"]["top1"][0])


def test_bad_input_is_one_sentence(parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: object) -> str:
        capsys.readouterr()
        assert main(["pretrain", *map(str, words)]) == 2
        sentence = capsys.readouterr().err
        assert len(sentence.splitlines()) == 1
        return sentence

    out = tmp_path / "more"
    assert "takes a number of epochs and a run's folder" in told("--more-epochs", parent, "--out", out)
    assert "takes a number of epochs and a run's folder" in told("--more-epochs", 0, parent, "--out", out)
    assert "holds no run" in told("--more-epochs", 5, tmp_path, "--out", out)
    assert "out is not set" in told("--more-epochs", 5, parent)
    assert "leave --config out" in told("--more-epochs", 5, parent, "--out", out, "--config", "imagenet_r18_moco")
    assert "holds a run with other settings" in told("--more-epochs", 5, parent, "--out", parent)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(parent, unfinished)
    (unfinished / "result.json").unlink()
    assert "is not finished: run its own command again" in told("--more-epochs", 5, unfinished, "--out", out)
    (unfinished / "result.json").write_text("{}")
    shutil.rmtree(unfinished / "checkpoints")
    assert "has no checkpoint left to go on from" in told("--more-epochs", 5, unfinished, "--out", out)
    assert not out.exists()


def test_settings_without_it_are_as_before() -> None:
    config = read(["--out", "run", "--data.train", "images", "--optim.epochs", "7"])
    assert config.student_weights is None and config.seed == 0 and config.optim.epochs == 7

"""What `mgd-ssl doctor` finds, held against what is there; its forecast and advice by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mgd_ssl.bench.scaling_model import Measured, step_seconds
from mgd_ssl.cli import main
from mgd_ssl.config import PretrainConfig
from mgd_ssl.doctor.advice import advice, forecast
from mgd_ssl.doctor.trial import Saved, largest_batch
from tests.runs import flags, tiny, trained_teacher


@pytest.fixture(scope="module")
def data(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images of 40 x 36, a PNG of 100 x 90, a broken one, and a file that is none."""
    folder = tmp_path_factory.mktemp("doctor") / "images"
    shutil.copytree(image_folder / "train", folder)
    Image.new("RGB", (100, 90), (10, 200, 30)).save(folder / "circles" / "large.png")
    (folder / "squares" / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("of mine")
    return folder


def settings(images: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return tiny(images.parent, out, data={"train": images, "image_size": 32, "workers": 0}, **changes)


def test_a_run_is_examined_and_nothing_is_kept(
    data: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = trained_teacher(tmp_path, image_folder)
    knn = {"train": image_folder / "train", "val": image_folder / "val", "k": 5}
    words = flags(settings(data, tmp_path / "run", teacher=teacher, knn=knn))
    capsys.readouterr()
    assert main(["doctor", *words, "--steps", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "run").exists()

    images = found["images"]
    assert images["images"] == images["decoded"] == 50 and images["formats"] == {"JPEG": 48, "PNG": 1}
    assert images["broken"] == 1 and images["first_broken"][0].startswith("squares/broken.jpg (")
    assert images["short_side"] == [36, 36, 90] and images["classes"] == 2 and images["ignored_files"] == 1
    assert "thin_resnet14" in found["teacher"]["teacher"]
    for name in ("knn_teacher", "knn_student_untrained"):  # of 12 images
        assert round(found["teacher"][name] * 12 / 100, 2) == round(found["teacher"][name] * 12 / 100)
    steps = found["steps"]
    assert steps["steps"] == 3 and steps["step_seconds"] > 0 and steps["matching_updates"] == 2
    assert found["machine"]["device"] == "cpu" and found["machine"]["disk_free_gb"] > 0
    assert [row["devices"] for row in found["forecast"]] == [1, 4, 8]
    assert any("--data.max-unreadable" in sentence for sentence in found["advice"])

    assert main(["doctor", *words, "--steps", "3"]) == 0
    page = capsys.readouterr().out
    assert "50, 2 classes; 50 decoded: 48 JPEG, 1 PNG" in page and "squares/broken.jpg" in page
    assert "1. " in page and "device hours" in page and "files without an image's extension: 1" in page


def test_the_machine_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    machine = json.loads(capsys.readouterr().out)["machine"]
    assert (
        machine["cores"] >= 1 and machine["disk_write_mb_s"] > 0 and machine["versions"]["torch"] == torch.__version__
    )


def test_bad_input_is_the_runs_own_sentence(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = settings(data, tmp_path / "run")
    for change, words in (
        ({"data": {"train": tmp_path / "none"}}, "none is not there"),
        ({"moco": {"queue_size": 65}}, "moco.queue_size 65 is not a multiple"),
        ({"teacher": tmp_path / "none.pt"}, "none.pt does not exist"),
        ({"optim": {"epochs": 0}}, "optim.epochs is 0: set it to 1 or more"),
        ({"student": "resnet19"}, "unknown architecture 'resnet19'"),
    ):
        merged = {k: {**base.get(k, {}), **v} if isinstance(v, dict) else v for k, v in change.items()}
        assert main(["doctor", *flags({**base, **merged}), "--steps", "3"]) == 2
        told = capsys.readouterr().err
        assert words in told and len(told.splitlines()) == 1
    assert main(["doctor", "--student", "resnet18"]) == 2
    assert "data.train is not set" in capsys.readouterr().err


MEASURED = Measured(batch=256, step_seconds=0.4, data_seconds=0.0, parameters=10_000_000, image_size=224, gpu=True)


def test_steps_on_several_devices() -> None:
    assert step_seconds(MEASURED, 1) == 0.4
    # four: a ring moves 2 x 3/4 x 40 MB in 2.4 ms, behind half of the 100 ms; 64 images and keys are not hidden
    images, keys = 0.75 * 64 * 3 * 224 * 224 * 4, 0.75 * (64 + 256) * 512
    assert step_seconds(MEASURED, 4) == pytest.approx(0.1 + (images + keys) / 25e9)
    slow_data = MEASURED._replace(data_seconds=1.0)
    assert step_seconds(slow_data, 1) == 1.0 and step_seconds(slow_data, 4) == 0.25
    launches = MEASURED._replace(step_seconds=0.02)
    assert step_seconds(launches, 8) == pytest.approx(0.012 + 0.0, abs=2e-3)
    assert step_seconds(MEASURED._replace(batch=12), 8) is None


STEPS = {
    "step_seconds": 0.4, "mean_wait_seconds": 0.0, "data_wait": 0.0, "parameters": 10_000_000, "matching_updates": 10,
    "look_seconds": 0.001, "workers": 1, "largest_batch": 512, "disk_needed_gb": 1.0,
}  # fmt: skip


def config(**changes: Any) -> PretrainConfig:
    base: dict[str, Any] = {"out": "run", "data": {"train": "images"}, "moco": {"bn_splits": 8}, "teacher": "t.pt"}
    return PretrainConfig(**{**base, "knn": {"train": "a", "val": "b"}, **changes})


def test_hours_of_the_whole_run() -> None:
    (row, *_) = forecast(config(), 1000 * 256 + 3, STEPS, gpu=True)
    assert row == {
        "devices": 1,
        "hours": round((200 * 1000 * 0.4 + 10 * 20000 * 0.001) / 3600, 4),
        "device_hours": row["hours"],
    }


def test_advice() -> None:
    machine = {"device": "cpu", "cores": 4, "disk_free_gb": 50.0, "bfloat16": True}
    images = {"images": 100_000, "decoded": 200, "broken": 0, "short_side": [300, 375, 500]}
    found: dict[str, Any] = {"machine": machine, "images": images, "steps": STEPS}
    assert advice(config(), found) == []

    def only(part: str, changes: dict[str, Any], **settings: Any) -> str:
        (sentence,) = advice(config(**settings), found | {part: found[part] | changes})
        return sentence

    assert "--data.workers 2" in only("steps", {"data_wait": 0.5})
    assert only("images", {"broken": 8}).endswith("--data.max-unreadable 0.08")
    assert only("images", {"short_side": [64, 64, 64]}).endswith("--data.image-size 64")
    assert "--runtime.precision bfloat16" in only(
        "machine", {"device": "cuda"}, runtime={"compile": True, "precision": "float32"}
    )
    assert "--optim.batch-size 128" in only("steps", {"largest_batch": 128})
    assert only("images", {"images": 15010}).endswith("--moco.queue-size 7424")
    assert "--out ELSEWHERE" in only("machine", {"disk_free_gb": 0.5})
    assert "--teacher FILE" in only("images", {}, teacher=None)
    assert "--knn.train" in only("images", {}, knn={})
    assert "--moco.bn-splits 8" in only("images", {}, moco={})
    waiting = advice(config(data={"train": "images", "image_size": 64}), found | {"steps": STEPS | {"data_wait": 0.5}})
    assert any("mgd-ssl pack images SHARDS --short-side 128" in sentence for sentence in waiting)


def test_bytes_kept_for_the_backward_pass() -> None:
    x, weight = torch.rand(1000, requires_grad=True), torch.nn.Parameter(torch.rand(1000))
    with Saved(True) as counted:
        (x.exp() * weight).sum()  # keeps exp's result, once, and the weight, which is there anyway
    assert counted.bytes == 4000
    with Saved(False) as counted:
        x.exp().sum()
    assert counted.bytes == 0


def test_the_largest_batch_is_a_power_of_two_that_fits() -> None:
    assert largest_batch(10.0, 8.0, 2**20) == 512  # (0.9 x 8192 - 3) / 12.5 = 589
    assert largest_batch(10.0, None, 0) is None and largest_batch(1e6, 1.0, 0) is None

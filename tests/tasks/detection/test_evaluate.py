"""`mgd-ssl detect --evaluate`, its page, and Faster R-CNN."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection import FasterRCNN

from mgd_ssl.cli import main
from mgd_ssl.commands import check
from mgd_ssl.errors import UserError
from mgd_ssl.files import read_json
from mgd_ssl.report.page import write_report
from mgd_ssl.run.result import Evaluation
from mgd_ssl.tasks.detection.average_precision import NUMBERS
from mgd_ssl.tasks.detection.build import build_detector
from mgd_ssl.tasks.detection.config import DetectConfig, DetectEvaluationConfig
from mgd_ssl.tasks.detection.detect import detect
from mgd_ssl.tasks.detection.evaluate import evaluate_run
from mgd_ssl.tasks.detection.faster_rcnn import FasterRCNNDetector
from mgd_ssl.tasks.detection.weights import begin
from tests.tasks.detection.detect_runs import settings
from tests.tasks.detection.shapes import write_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    write_shapes(root, "train", 8, seed=0)
    write_shapes(root, "val", 6, seed=1)
    return root


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Faster R-CNN, which finds boxes from its first steps on."""
    out = tmp_path_factory.mktemp("runs") / "run"
    network = {"kind": "faster_rcnn", "norm": "group", "frozen_stages": 0, "pyramid_channels": 16}
    detect(**settings(shapes, out, network=network, optim={"steps": 3}))
    return out


def config(run: Path, **more: Any) -> DetectEvaluationConfig:
    return DetectEvaluationConfig(evaluate=run, workers=0, runtime={"device": "cpu", "threads": 1}, **more)


def test_the_numbers_are_those_the_run_ended_with(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--evaluate",
        str(run),
        "--workers",
        "0",
        "--shown",
        "2",
        "--runtime.device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    assert main(["detect", *words]) == 0
    told = capsys.readouterr().out
    assert "square" in told and "disc" in told and str(tmp_path / "detection.html") in told
    result = read_json(run / "result.json")
    evaluation = Evaluation.load(tmp_path / "evaluation_detection_instances_val2017.json")
    known = {name: value for name, value in result["average_precision"].items() if value is not None}
    assert {name: values[0] for name, values in evaluation.values.items()} == pytest.approx(known)
    assert evaluation.details["classes"] == result["classes"]
    of_run, again = (
        json.loads(path.read_text())
        for path in (run / "detections.json", tmp_path / "detections_instances_val2017.json")
    )
    assert of_run == again and len(again) > 0
    assert check("detect", words) == tmp_path


def test_the_page_has_all_numbers_classes_and_pictures(run: Path, tmp_path: Path) -> None:
    from mgd_ssl.report.detection import write_page

    page = write_page(evaluate_run(config(run, out=tmp_path)), shown=3).read_text()
    assert all(f"<td>{name}</td>" in page for name in (*NUMBERS, "square", "disc"))
    assert page.count('<img src="data:image/svg+xml') == 2 and page.count('<img src="data:image/png') == 3
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_checkpoint_is_evaluated_where_the_run_is_unfinished(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "encoder.pt").unlink()
    (tmp_path / "copy" / "result.json").unlink()
    one, other = (evaluate_run(config(folder)).average_precision.numbers for folder in (run, tmp_path / "copy"))
    assert one == other


def test_what_does_not_fit_is_told(run: Path, shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder of a run"):
        evaluate_run(config(tmp_path))
    boxes = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    boxes["categories"][0]["name"] = "cube"
    (tmp_path / "other.json").write_text(json.dumps(boxes))
    with pytest.raises(UserError, match=r"other\.json has other categories than"):
        evaluate_run(config(run, annotations=tmp_path / "other.json"))
    with pytest.raises(UserError, match=r"holds a detector \(AP \d+\.\d\): mgd-ssl detect --evaluate"):
        write_report([run], tmp_path / "report.html")


def test_faster_rcnn_is_torchvisions_with_classes_from_0() -> None:
    chosen = DetectConfig(
        out=Path("unused"), student="resnet18", network={"kind": "faster_rcnn", "pyramid_channels": 32, "norm": "batch"}
    )
    detector = build_detector(chosen, begin(chosen), 3)
    assert isinstance(detector, FasterRCNNDetector) and isinstance(detector.network, FasterRCNN)
    network = detector.network.eval()
    images = torch.randn(2, 3, 96, 96)
    sizes = torch.tensor([[96, 96], [96, 96]])
    for value in network.roi_heads.box_predictor.cls_score.parameters():
        torch.nn.init.normal_(value, std=0.3)
    network.transform.image_mean, network.transform.image_std = [0.0] * 3, [1.0] * 3
    network.transform.min_size, network.transform.max_size = (96,), 96
    with torch.no_grad():
        ours = detector.detections(images, sizes)
        theirs = network(list(images))
    assert len(ours[0]["labels"]) > 10
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"])
        assert torch.equal(one["labels"], other["labels"] - 1) and int(one["labels"].min()) == 0
    boxes = {"boxes": torch.tensor([[10.0, 10, 60, 60]]), "labels": torch.tensor([0])}
    network.train()
    torch.manual_seed(0)
    torch.rand(2)  # torchvision's transform draws a size for each image
    found = detector.losses(images, sizes, [boxes, boxes])
    torch.manual_seed(0)
    expected = network(list(images), [{**boxes, "labels": torch.tensor([1])}] * 2)
    assert {name: value.item() for name, value in found.items()} == {
        name.removeprefix("loss_"): value.item() for name, value in expected.items()
    }

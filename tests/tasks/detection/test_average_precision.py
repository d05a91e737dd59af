"""Average precision against pycocotools reading the files itself, and against a loop by hand."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mgd_ssl.config import USUAL
from mgd_ssl.tasks.detection.average_precision import NUMBERS, Detections, average_precision
from mgd_ssl.tasks.detection.coco import Annotated, read_coco
from mgd_ssl.tasks.detection.saved import save_detections


def random_truth(path: Path, seed: int, images: int = 12, crowds: bool = True) -> Annotated:
    """Boxes of three sizes and classes; some images are empty, some boxes are crowds."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    for image in range(images):
        for _ in range(int(rng.integers(0, 6)) if image % 4 else 0):
            edges = rng.choice([10, 50, 150], 2) * rng.uniform(0.8, 1.2, 2)
            corner = rng.uniform(0, 200, 2)
            annotations.append({
                "id": len(annotations) + 1, "image_id": 5 * image + 2, "category_id": int(rng.choice([2, 3, 90])),
                "bbox": [*corner.tolist(), *edges.tolist()], "area": float(edges.prod() * rng.uniform(0.5, 1)),
                "iscrowd": int(crowds and rng.random() < 0.2),
            })  # fmt: skip
    content = {
        "images": [{"id": 5 * i + 2, "file_name": f"{i}.jpg", "width": 400, "height": 400} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in (2, 3, 90)],
    }
    path.write_text(json.dumps(content))
    return read_coco(path.parent, path, USUAL)


def random_detections(truth: Annotated, seed: int) -> Detections:
    """Boxes near the true ones and anywhere, scores of few values, so that many are tied."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, list[float], float, int]] = []
    for i in range(len(truth.ids)):
        own = truth.boxes_of(i)
        for corners, label in zip(own.corners, own.labels.tolist(), strict=True):
            for _ in range(int(rng.integers(0, 3))):
                moved = corners + rng.normal(0, 4, 4)
                box = [*moved[:2].tolist(), *(moved[2:] - moved[:2]).clip(1).tolist()]
                rows.append((i, box, float(rng.integers(1, 6)) / 6, label if rng.random() < 0.9 else 1))
        for _ in range(int(rng.integers(0, 3))):
            rows.append((i, [*rng.uniform(0, 300, 2), *rng.uniform(5, 100, 2)], 0.5, int(rng.integers(3))))
    images, boxes, scores, labels = zip(*rows, strict=True)
    return Detections(np.array(images), np.array(boxes), np.array(scores), np.array(labels))


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pycocotools_reading_the_files(tmp_path: Path, seed: int) -> None:
    truth = random_truth(tmp_path / "truth.json", seed)
    found = random_detections(truth, seed)
    ours = average_precision(truth, found)
    results = found.results(truth)
    for result, box, score in zip(results, found.boxes.tolist(), found.scores.tolist(), strict=True):
        result["bbox"], result["score"] = box, score  # which are rounded in the file
    (tmp_path / "found.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(tmp_path / "truth.json")
        evaluation = COCOeval(reference, reference.loadRes(str(tmp_path / "found.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = {name: 100 * value for name, value in zip(NUMBERS, evaluation.stats, strict=True) if value >= 0}
    assert {name: value for name, value in ours.numbers.items() if value is not None} == expected
    assert 5 < expected["AP"] < 95
    by_class = [each["AP"] for each in ours.classes.values() if each["AP"] is not None]
    assert np.mean(by_class) == pytest.approx(expected["AP"])
    np.testing.assert_array_equal(ours.curves[0], evaluation.eval["precision"][0, :, :, 0, -1])


@pytest.mark.parametrize("seed", [7, 8])
def test_ap50_against_a_loop(tmp_path: Path, seed: int) -> None:
    truth = random_truth(tmp_path / "truth.json", seed, crowds=False)
    found = random_detections(truth, seed)
    ours = average_precision(truth, found)
    for label, category in enumerate(truth.categories):
        expected = naive_ap50(truth, found, label)
        assert ours.classes[category.name]["AP50"] == pytest.approx(expected)


def naive_ap50(truth: Annotated, found: Detections, label: int) -> float:
    hits, total = [], int((truth.boxes.labels == label).sum())
    taken: set[tuple[int, int]] = set()
    order = sorted(np.flatnonzero(found.labels == label).tolist(), key=lambda i: -found.scores[i])
    for i in order:
        image, (x, y, w, h) = int(found.images[i]), found.boxes[i].tolist()
        own, best = truth.boxes_of(image), (0.5, -1)
        for j, (x1, y1, x2, y2) in enumerate(own.corners.tolist()):
            if own.labels[j] != label or (image, j) in taken:
                continue
            common = max(0, min(x + w, x2) - max(x, x1)) * max(0, min(y + h, y2) - max(y, y1))
            iou = common / (w * h + (x2 - x1) * (y2 - y1) - common)
            if iou >= best[0]:
                best = (iou, j)
        if best[1] >= 0:
            taken.add((image, best[1]))
        hits.append(best[1] >= 0)
    right = np.cumsum(hits)
    precision, recall = right / np.arange(1, len(hits) + 1), right / total
    points = [
        max((p for p, r in zip(precision, recall, strict=True) if r >= at), default=0.0)
        for at in np.linspace(0, 1, 101)
    ]
    return 100 * float(np.mean(points))


def test_nothing_found_is_zero_and_nothing_of_a_size_is_none(tmp_path: Path) -> None:
    truth = random_truth(tmp_path / "truth.json", 1)
    small = truth.boxes.areas < 32**2
    only = truth.boxes._replace(areas=np.full(len(small), 50.0))
    one = Annotated(truth.path, truth.images, truth.ids, truth.sizes, truth.categories, only, truth.starts)
    nothing = Detections(np.empty(0, int), np.empty((0, 4)), np.empty(0), np.empty(0, int))
    numbers = average_precision(one, nothing).numbers
    assert numbers["AP"] == numbers["AP_small"] == numbers["AR_100"] == 0
    assert numbers["AP_large"] is numbers["AR_medium"] is None


def test_results_have_the_files_ids(tmp_path: Path) -> None:
    truth = random_truth(tmp_path / "truth.json", 2)
    found = Detections(np.array([3]), np.array([[1.25, 2, 3, 4]]), np.array([0.5]), np.array([2]))
    save_detections(tmp_path / "results.json", truth, found)
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert row == {"image_id": 17, "category_id": 90, "bbox": [1.25, 2, 3, 4], "score": 0.5}

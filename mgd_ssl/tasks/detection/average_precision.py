"""Average precision as COCO counts it (https://cocodataset.org/#detection-eval), by pycocotools."""

import contextlib
import io
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from mgd_ssl.data.loader import Reading, one_pass
from mgd_ssl.errors import UserError
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.tasks.detection.coco import Annotated
from mgd_ssl.tasks.detection.detector import Detector
from mgd_ssl.tasks.detection.samples import WholeImages
from mgd_ssl.tasks.detection.uploaded import Uploaded
from moco.dist import rank, world_size

NUMBERS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip  # in the order of COCOeval.stats


class Detections(NamedTuple):
    """Boxes found in images, those of one image next to each other, best first."""

    images: np.ndarray  # [k] int64 index of the image
    boxes: np.ndarray  # [k, 4] float64: x, y, width, height in pixels of the file
    scores: np.ndarray  # [k] float64
    labels: np.ndarray  # [k] int64 index of the category

    def results(self, annotated: Annotated) -> list[dict[str, Any]]:
        """COCO's format of results."""
        ids = [category.id for category in annotated.categories]
        return [
            {
                "image_id": int(annotated.ids[image]), "category_id": ids[label],
                "bbox": [round(edge, 3) for edge in box], "score": round(score, 6),
            }
            for image, box, score, label in zip(*(values.tolist() for values in self), strict=True)
        ]  # fmt: skip


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's numbers in percent; -1 of COCO (nothing of that kind in the images) is None."""

    numbers: dict[str, float | None]  # by `NUMBERS`
    classes: dict[str, dict[str, float | None]]  # name -> AP, AP50, AP75
    curves: np.ndarray  # [3, 101, K] precision at IoU 0.5, 0.75 and on average, by recall 0, 0.01, ..., 1; -1: no such


def check_installed() -> None:
    """Raise UserError when there is no pycocotools."""
    try:
        import_module("pycocotools.cocoeval")
    except ImportError as error:
        raise UserError(f"pycocotools is missing ({error}): pip install 'mgd_ssl[detection]'") from error


@torch.inference_mode()
def detect_all(
    detector: Detector, annotated: Annotated, runtime: Runtime, *, edges: tuple[int, int], reading: Reading
) -> Detections:
    """What a detector finds in all images, each process looking at its part; the same on all ranks.

    Args:
        detector: put into eval mode for the time being.
        annotated: the images.
        runtime: device and precision.
        edges: short side, and the longest that the other may have.
        reading: how they are read; one image a batch, so that none is padded by another.
    """
    upload, modes = Uploaded(runtime), {module: module.training for module in detector.modules()}
    detector.eval()
    found: list[tuple[np.ndarray, ...]] = []
    with one_pass(WholeImages(annotated, *edges), np.arange(len(annotated.ids)), reading) as batches:
        for batch in batches:
            seen = upload(batch)
            with runtime.autocast():
                (one,) = detector.detections(seen.images, seen.sizes)
            corners = one["boxes"].double().cpu().numpy() / batch.scales[0].repeat(2).numpy()
            boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
            where = np.full(len(boxes), int(batch.indices[0]))
            found.append((where, boxes, one["scores"].double().cpu().numpy(), one["labels"].cpu().numpy()))
    for module, mode in modes.items():
        module.training = mode
    return _over_ranks(found)


def _over_ranks(mine: list[tuple[np.ndarray, ...]]) -> Detections:
    parts = [mine]
    if world_size() > 1:
        parts = [[] for _ in range(world_size())]
        dist.all_gather_object(parts, mine)
    every = sorted((one for part in parts for one in part if len(one[0])), key=lambda one: int(one[0][0]))
    if not every:
        return Detections(np.empty(0, int), np.empty((0, 4)), np.empty(0), np.empty(0, int))
    return Detections(*(np.concatenate(values) for values in zip(*every, strict=True)))


def average_precision(annotated: Annotated, detections: Detections) -> AveragePrecision:
    """COCO's evaluation of boxes.

    Raises:
        UserError: when pycocotools is missing.
    """
    check_installed()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _dataset(annotated)
        truth.createIndex()
        ids = [category.id for category in annotated.categories]
        rows = [
            np.array([annotated.ids[image], *box, score, ids[label]])
            for image, box, score, label in zip(*detections, strict=True)
        ]
        found = truth.loadRes(np.array(rows)) if rows else _nothing(truth)
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return _summary(annotated, evaluation)


def _summary(annotated: Annotated, evaluation: Any) -> AveragePrecision:
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [10 IoUs, 101 recalls, K], any area, 100 boxes
    curves = np.stack([precision[0], precision[5], precision.mean(axis=0)])
    parts = {"AP": precision, "AP50": precision[:1], "AP75": precision[5:6]}
    classes = {
        category.name: {name: _percent(_mean(part[:, :, k])) for name, part in parts.items()}
        for k, category in enumerate(annotated.categories)
    }
    numbers = {name: _percent(value) for name, value in zip(NUMBERS, evaluation.stats.tolist(), strict=True)}
    return AveragePrecision(numbers, classes, curves)


def _mean(precision: np.ndarray) -> float:
    there = precision[precision > -1]
    return float(there.mean()) if there.size else -1.0


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * value


def _nothing(truth: Any) -> Any:
    """No detections, which `loadRes` cannot take."""
    from pycocotools.coco import COCO

    empty = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _dataset(annotated: Annotated) -> dict[str, Any]:
    """What `COCO` reads from a file."""
    boxes, ids = annotated.boxes, [category.id for category in annotated.categories]
    of_image = np.repeat(annotated.ids, np.diff(annotated.starts)).tolist()
    xywh = np.concatenate([boxes.corners[:, :2], boxes.corners[:, 2:] - boxes.corners[:, :2]], axis=1).tolist()
    rows = zip(of_image, xywh, boxes.labels.tolist(), boxes.crowd.tolist(), boxes.areas.tolist(), strict=True)
    return {
        "images": [{"id": number} for number in annotated.ids.tolist()],
        "categories": [category._asdict() for category in annotated.categories],
        "annotations": [
            {
                "id": i, "image_id": image, "bbox": box, "category_id": ids[label], "iscrowd": int(crowd),
                "area": area, "ignore": 0,
            }
            for i, (image, box, label, crowd, area) in enumerate(rows, start=1)
        ],
    }  # fmt: skip


def part_of_rank(count: int) -> int:
    """How many of so many images this rank looks at."""
    return len(range(rank(), count, world_size()))

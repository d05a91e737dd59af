"""A detection run evaluated: COCO's numbers and those of every class, on the run's own images or on others."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mgd_ssl.config import Decoding
from mgd_ssl.data.loader import Reading
from mgd_ssl.errors import UserError
from mgd_ssl.networks.backbones import build_backbone, set_head
from mgd_ssl.run.checkpoint import read_checkpoint, taken_over
from mgd_ssl.run.folder import damaged_description, find_weights, saved_description
from mgd_ssl.run.result import Evaluation
from mgd_ssl.run.runtime import Runtime, on_rank_zero, process
from mgd_ssl.tasks.detection.average_precision import (
    AveragePrecision,
    Detections,
    average_precision,
    check_installed,
    detect_all,
)
from mgd_ssl.tasks.detection.build import build_detector
from mgd_ssl.tasks.detection.coco import Annotated, Category, check_files, read_coco, split_of
from mgd_ssl.tasks.detection.config import DetectConfig, DetectEvaluationConfig
from mgd_ssl.tasks.detection.detector import Detector
from mgd_ssl.tasks.detection.saved import save_detections
from mgd_ssl.tasks.detection.weights import Beginning


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found."""

    name: str  # of the run
    evaluation: Evaluation
    annotated: Annotated
    detections: Detections
    average_precision: AveragePrecision
    out: Path  # folder of the results


def evaluate_run(config: DetectEvaluationConfig) -> Evaluated:
    """Evaluate a run's detector, over all processes; the results are written by rank 0.

    Raises:
        UserError: when the folder holds no detection, or images and boxes do not fit it.
        DiskError: when the results cannot be written.
    """
    check_installed()
    run = config.evaluate
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is no folder of a run: pass that of a run of mgd-ssl detect")
    saved = saved_description(run)
    if saved.get("task") != "detection":
        raise UserError(f"{run} holds a run of another command: pass that of a run of mgd-ssl detect")
    try:
        of_run = DetectConfig(**saved["config"])
        categories = [Category(int(number), str(name)) for number, name in saved["data"]["categories"]]
    except (LookupError, TypeError, ValueError) as error:
        raise damaged_description(run) from error
    with process(config.runtime) as runtime:
        weights = on_rank_zero(lambda: find_weights(run))
        annotated = on_rank_zero(lambda: opened(config, of_run, categories))
        detector = load_detector(of_run, len(categories), weights).to(runtime.device)
        return _evaluated(config, of_run, (detector, weights), annotated, runtime)


def opened(config: DetectEvaluationConfig, of_run: DetectConfig, categories: list[Category]) -> Annotated:
    """Images and boxes to evaluate on.

    Raises:
        UserError: when anything is wrong with them, or they have other categories.
    """
    folder, path = config.images, config.annotations
    if folder is None or path is None:
        usual = split_of(of_run.data, "val")
        folder, path = folder or usual.images, path or usual.annotations
    annotated = read_coco(folder, path, Decoding(of_run.data.background, of_run.data.max_pixels))
    check_files(annotated, 0.0)
    if annotated.categories != categories:
        raise UserError(
            f"{path} has other categories than {config.evaluate} was trained on ({len(annotated.categories)} and "
            f"{len(categories)}, or other ids or names): pass a file with the same"
        )
    return annotated


def load_detector(config: DetectConfig, num_classes: int, weights: Path) -> Detector:
    """The detector of a run, from its `encoder.pt` or a checkpoint.

    Raises:
        UserError: when the file does not fit.
    """
    body: Any = build_backbone(config.student or "", 1)
    set_head(body, nn.Identity())
    detector = build_detector(config, Beginning(body, config.student or "", None), num_classes)
    state = read_checkpoint(weights)
    with taken_over(weights):
        detector.network.load_state_dict(state.get("state_dict", state))
    return detector.eval()


def _evaluated(
    config: DetectEvaluationConfig,
    of_run: DetectConfig,
    trained: tuple[Detector, Path],
    annotated: Annotated,
    runtime: Runtime,
) -> Evaluated:
    (detector, weights), data = trained, of_run.data
    edges = (data.val_side, data.longest_side)
    reading = Reading(batch_size=1, workers=runtime.data_workers(config.workers), pin=runtime.device.type == "cuda")
    found = detect_all(detector, annotated, runtime, edges=edges, reading=reading)
    result = on_rank_zero(lambda: average_precision(annotated, found))
    out, stem = config.out or config.evaluate, annotated.path.stem
    protocol = (
        f"COCO box AP (pycocotools) on {len(annotated.ids)} images of {annotated.path.name}, short side {edges[0]}, "
        f"long side {edges[1]} at most, {config.runtime.precision}"
    )
    evaluation = Evaluation(
        "detection", stem, protocol, str(weights), str(of_run.student),
        {name: [value] for name, value in result.numbers.items() if value is not None},
        {"classes": result.classes, "detector": of_run.network.kind, "boxes_found": len(found.scores)},
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        evaluation.save(out)
        save_detections(out / f"detections_{stem}.json", annotated, found)
    return Evaluated(config.evaluate.resolve().name, evaluation, annotated, found, result, out)

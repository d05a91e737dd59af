"""The images and the teacher, as a run would find them."""

import statistics
import time
from collections import Counter
from typing import Any

import numpy as np

from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.decode import decode, identify
from mgd_ssl.data.images import Images
from mgd_ssl.data.order import subset
from mgd_ssl.data.samples import decoding_of
from mgd_ssl.data.sources import Labelled, scan_labelled
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.features import FeatureExtractor
from mgd_ssl.evaluation.knn import knn_accuracy
from mgd_ssl.networks.backbones import initial_encoder, trunk
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime

TOLD = 3  # broken files named
MOST_VOTING, MOST_CLASSIFIED = 2000, 500  # images of the k-NN


def look_at_images(images: Images, count: int, seed: int) -> dict[str, Any]:
    """What some images, drawn evenly, are: formats, sizes, broken ones, and what one costs to decode."""
    chosen = subset(len(images), count, seed, "doctor")
    formats, broken, sides, seconds = Counter[str](), list[str](), list[tuple[int, int]](), list[float]()
    for index in chosen.tolist():
        try:
            content = images.read(index)
            image = identify(content, images.decoding)
            formats[image.format or "?"] += 1
            started = time.perf_counter()
            decoded = decode(content, images.decoding)
            seconds.append(time.perf_counter() - started)
            sides.append((min(decoded.size), max(decoded.size)))
        except Exception as error:  # decoders raise anything
            broken.append(f"{images.name(index)} ({type(error).__name__}: {error})")
    found: dict[str, Any] = {"images": len(images), "decoded": len(chosen), "formats": dict(formats)}
    found |= {"broken": len(broken), "first_broken": broken[:TOLD], "ignored_files": len(images.ignored)}
    if sides:
        short = sorted(side for side, _ in sides)
        found |= {"short_side": [short[0], int(statistics.median(short)), short[-1]]}
        found |= {"decode_ms": round(1000 * statistics.median(seconds), 2)}
    try:
        found["classes"] = len(images.labels()[1])
    except UserError:
        found["classes"] = None
    return found


def look_at_teacher(config: PretrainConfig, teacher: Teacher | None, runtime: Runtime) -> dict[str, Any]:
    """How it was loaded; with labels the k-NN accuracy of some images, beside the untrained student's."""
    report = None if teacher is None else teacher.report
    found: dict[str, Any] = {"teacher": None if report is None else str(report)}
    found["notes"] = [] if report is None else [*report.notes(), *report.warnings()]
    if config.knn.train is None or config.knn.val is None:
        return found
    moco = config.moco
    student = initial_encoder(config.student, moco.dim, moco.head_width, config.seed)
    networks = {"student_untrained": student.to(runtime.device)}
    if teacher is not None:
        networks["teacher"] = teacher.backbone
    sets = scan_labelled(config.knn.train, config.knn.val, decoding_of(config.data))
    parts = [_some(each, most, config.seed) for each, most in zip(sets, (MOST_VOTING, MOST_CLASSIFIED), strict=True)]
    k = min(config.knn.k, len(parts[0]))
    found["knn_protocol"] = f"k={k}, {len(parts[0])} voting and {len(parts[1])} classified images"
    for name, network in networks.items():
        extract = FeatureExtractor(trunk(network), runtime, config.data.image_size)
        bank, queries = (extract(each, part) for each, part in zip(sets, parts, strict=True))
        accuracy = knn_accuracy(bank, queries, k, config.knn.temperature, runtime.device)
        found[f"knn_{name}"] = round(accuracy.top1, 2)
    return found


def _some(labelled: Labelled, most: int, seed: int) -> np.ndarray:
    return subset(len(labelled.images), most, seed, "doctor")


def disk_needed_gb(config: PretrainConfig, state_bytes: int) -> float:
    """Room for the checkpoints that are kept, and one more that is being written."""
    return round((config.checkpoint.keep + 1) * state_bytes / 2**30, 2)

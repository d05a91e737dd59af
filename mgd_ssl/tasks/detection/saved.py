"""Files that a detection leaves beside its rows."""

import json
from pathlib import Path

from mgd_ssl.files import write_whole, writing
from mgd_ssl.tasks.detection.average_precision import Detections
from mgd_ssl.tasks.detection.coco import Annotated


def save_detections(path: Path, annotated: Annotated, detections: Detections) -> None:
    """Write detections in COCO's format of results.

    Raises:
        DiskError: when the file cannot be written.
    """
    with writing(path):
        write_whole(path, json.dumps(detections.results(annotated)).encode())

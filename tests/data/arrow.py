"""Arrow and Parquet files written by tests."""

import io
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from PIL import Image
from pyarrow import parquet

from mgd_ssl.data.folder import ImageList

CLASSES = ["squares", "circles"]  # not in alphabetical order


def as_dataset(folder: Path) -> datasets.Dataset:
    """The images of a class folder in its own order, with labels."""
    images = ImageList.scan(folder)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    rows = {
        "image": [str(folder / images.name(i)) for i in range(len(images))],
        "label": [CLASSES.index(images.name(i).partition("/")[0]) for i in range(len(images))],
    }
    return datasets.Dataset.from_dict(rows, features=features)


# data sets that were not made by `datasets`, and what can be wrong


def encoded(count: int = 3) -> list[bytes]:
    found = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (i, 0, 0)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def write_rows(path: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def structs(count: int = 3) -> list[dict[str, bytes | None]]:
    return [{"bytes": content, "path": None} for content in encoded(count)]

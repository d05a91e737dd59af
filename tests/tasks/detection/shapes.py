"""A small data set in COCO's format: bright shapes on dark noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CATEGORIES = [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]  # ids with gaps, as COCO's


def write_shapes(folder: Path, name: str, count: int, seed: int, size: tuple[int, int] = (72, 60)) -> None:
    """Write `count` images into folder/name2017 and their boxes into folder/annotations/instances_name2017.json."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / f"{name}2017").mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        width, height = size if i % 2 else size[::-1]
        image = Image.fromarray(rng.integers(0, 80, (height, width, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(1 + int(rng.integers(2))):
            edge = int(rng.integers(14, 30))
            x, y = int(rng.integers(0, width - edge)), int(rng.integers(0, height - edge))
            kind = int(rng.integers(2))
            colour = [(230, 60, 60), (60, 90, 240)][kind]
            (draw.rectangle if kind == 0 else draw.ellipse)((x, y, x + edge - 1, y + edge - 1), fill=colour)
            annotations.append({
                "id": len(annotations) + 1, "image_id": 10 + i, "category_id": CATEGORIES[kind]["id"],
                "bbox": [x, y, edge, edge], "area": edge * edge, "iscrowd": 0,
            })  # fmt: skip
        images.append({"id": 10 + i, "file_name": f"{i:012d}.jpg", "width": width, "height": height})
        image.save(folder / f"{name}2017" / f"{i:012d}.jpg", quality=95)
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "annotations" / f"instances_{name}2017.json").write_text(json.dumps(content))

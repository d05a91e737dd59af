"""A procedural set in COCO's format: shapes on textures. `python -m benchmarks.detection_set FOLDER` writes it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from moco.keyed import keyed_generator

CLASSES = ("disc", "square", "triangle", "ring")
EDGE = 64  # pixels of an image's longer side
SHAPES = ((EDGE, EDGE), (EDGE, 48), (48, EDGE))  # width and height: in a batch some are padded
OBJECTS = (1, 3)  # in an image, the larger one included
EDGES = (14, 34)  # pixels of an object
COUNTS = {"train": 600, "val": 300}


def texture(rng: np.random.Generator, edge: int) -> np.ndarray:
    """Smooth noise of two colours under fine noise: [edge, edge, 3] float."""
    coarse = rng.random((int(rng.integers(3, 9)),) * 2)
    smooth = np.asarray(Image.fromarray((255 * coarse).astype(np.uint8)).resize((edge, edge), Image.Resampling.BICUBIC))
    one, other = rng.uniform(20, 235, (2, 3))
    share = smooth[..., None] / 255
    noise = rng.normal(0, rng.uniform(2, 18), (edge, edge, 1))
    return np.clip(share * one + (1 - share) * other + noise, 0, 255)


def mask(kind: str, edge: int) -> np.ndarray:
    """Where a shape is: [edge, edge] bool, touching all four sides."""
    image = Image.new("L", (edge, edge))
    draw, last = ImageDraw.Draw(image), edge - 1
    if kind == "triangle":
        draw.polygon([(0, last), (last, last), (last / 2, 0)], fill=1)
    elif kind == "square":
        draw.rectangle((0, 0, last, last), fill=1)
    else:
        draw.ellipse((0, 0, last, last), fill=1)
        if kind == "ring":
            inner = edge // 4
            draw.ellipse((inner, inner, last - inner, last - inner), fill=0)
    return np.asarray(image).astype(bool)


def overlap(box: tuple[int, int, int], others: list[tuple[int, int, int]]) -> bool:
    """Whether a square (x, y, edge) touches another one."""
    x, y, e = box
    return any(x < ox + oe and ox < x + e and y < oy + oe and oy < y + e for ox, oy, oe in others)


def picture(rng: np.random.Generator) -> tuple[Image.Image, list[tuple[int, int, int]], list[int]]:
    """An image, the squares its objects fill, and their classes."""
    width, height = SHAPES[rng.integers(len(SHAPES))]
    pixels, boxes, labels = texture(rng, EDGE)[:height, :width], list[tuple[int, int, int]](), list[int]()
    for _ in range(int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))):
        edge = int(rng.integers(*EDGES))
        x, y = int(rng.integers(width - edge)), int(rng.integers(height - edge))
        if overlap((x, y, edge), boxes):
            continue
        label = int(rng.integers(len(CLASSES)))
        inside, own = mask(CLASSES[label], edge), texture(rng, edge)
        pixels[y : y + edge, x : x + edge][inside] = own[inside]
        boxes.append((x, y, edge))
        labels.append(label)
    return Image.fromarray(pixels.astype(np.uint8)), boxes, labels


def write(folder: Path) -> None:
    """Both splits, laid out as COCO unpacks."""
    (folder / "annotations").mkdir(parents=True)
    for split, (name, count) in enumerate(COUNTS.items()):
        images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
        (folder / f"{name}2017").mkdir()
        for i in range(count):
            image, boxes, labels = picture(keyed_generator(0, "shapes", split, i))
            image.save(folder / f"{name}2017" / f"{i:06d}.png")
            images.append({"id": i, "file_name": f"{i:06d}.png", "width": image.width, "height": image.height})
            for (x, y, edge), label in zip(boxes, labels, strict=True):
                annotations.append({
                    "id": len(annotations) + 1, "image_id": i, "category_id": label + 1, "bbox": [x, y, edge, edge],
                    "area": edge * edge, "iscrowd": 0,
                })  # fmt: skip
        categories = [{"id": label + 1, "name": each} for label, each in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{name}2017.json").write_text(json.dumps(content))


def write_objects(folder: Path, count: int) -> None:
    """The same shapes as a labelled set, one an image and most of it: `train/CLASS/*.png` and `val/CLASS/*.png`."""
    for split, name in enumerate(COUNTS):
        for label, each in enumerate(CLASSES):
            (folder / name / each).mkdir(parents=True)
            for i in range(count):
                rng = keyed_generator(0, "objects", split, label, i)
                edge, own = int(rng.integers(EDGES[0], EDGE)), texture(rng, EDGE)
                pixels, inside = texture(rng, EDGE), mask(each, edge)
                x, y = (int(v) for v in rng.integers(0, EDGE - edge + 1, 2))
                pixels[y : y + edge, x : x + edge][inside] = own[:edge, :edge][inside]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / name / each / f"{i:04d}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

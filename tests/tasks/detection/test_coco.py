"""Annotations in COCO's format: what is read, what is left out, and the sentences for what is wrong."""

import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgd_ssl.config import USUAL
from mgd_ssl.errors import UserError
from mgd_ssl.tasks.detection import streamed_json
from mgd_ssl.tasks.detection.coco import check_files, check_same_categories, open_split, read_coco
from mgd_ssl.tasks.detection.config import DetectionDataConfig
from mgd_ssl.tasks.detection.streamed_json import StreamedJSON


def content(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "info": {"year": 2017, "list": [1, [2]]},
        "licenses": [{"id": 1}],
        "images": [
            {"id": 9, "file_name": "b.jpg", "width": 40, "height": 30},
            {"id": 4, "file_name": "a.jpg", "width": 50, "height": 20},
            {"id": 6, "file_name": "empty.jpg", "width": 10, "height": 10},
        ],
        "annotations": [box(1, 9, 5, [1, 2, 3, 4]), box(2, 4, 2, [0, 0, 50, 20]), box(3, 9, 2, [30, 20, 20, 20])],
        "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "ant"}],
    }
    return {**whole, **changes}


def box(number: int, image: int, category: int, xywh: list[float], **more: Any) -> dict[str, Any]:
    area = {"area": xywh[2] * xywh[3]} if "area" not in more else {}
    return {"id": number, "image_id": image, "category_id": category, "bbox": xywh, "iscrowd": 0, **area, **more}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps(content(**changes)))
        return path

    return write


def test_images_and_boxes_are_sorted_by_image(written: Callable[..., Path], tmp_path: Path) -> None:
    found = read_coco(tmp_path, written(), USUAL)
    assert found.ids.tolist() == [4, 6, 9]
    assert [found.images.name(i) for i in range(3)] == ["a.jpg", "empty.jpg", "b.jpg"]
    assert [category.name for category in found.categories] == ["ant", "cat"]
    assert [found.boxes_of(i).labels.tolist() for i in range(3)] == [[0], [], [1, 0]]
    assert found.boxes_of(2).corners.tolist() == [[1, 2, 4, 6], [30, 20, 50, 40]]
    assert found.trainable.tolist() == [0, 2] and not found.left_out


def test_order_of_the_lists_does_not_matter(written: Callable[..., Path], tmp_path: Path) -> None:
    one = read_coco(tmp_path, written(), USUAL)
    path = tmp_path / "other.json"
    path.write_text(json.dumps(dict(reversed(content().items())), indent=1))
    assert read_coco(tmp_path, path, USUAL).fingerprint() == one.fingerprint()


def test_bad_boxes_are_counted_and_left_out(written: Callable[..., Path], tmp_path: Path) -> None:
    nan = float("nan")
    bad = [box(4, 4, 2, [60, 1, 5, 5]), box(5, 4, 2, [1, 1, 0, 5]), box(6, 9, 5, [nan, 1, 2, 2])]
    crowd = [box(7, 6, 5, [0, 0, 5, 5], iscrowd=1)]
    found = read_coco(tmp_path, written(annotations=[*content()["annotations"], *bad, *crowd]), USUAL)
    assert len(found.boxes.labels) == 4
    assert found.trainable.tolist() == [0, 2]  # an image of crowds alone is not learnt from
    for told in ("1 boxes outside their image", "1 boxes of no area", "1 boxes with numbers that are not finite"):
        assert told in found.told()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": []}, "holds no images"),
        ({"annotations": []}, "holds no annotations"),
        ({"categories": []}, "holds no categories"),
        ({"annotations": [box(1, 77, 5, [1, 1, 1, 1])]}, "have a image_id that is not listed .first: 77."),
        ({"annotations": [box(1, 9, 80, [1, 1, 1, 1])]}, "have a category_id that is not listed .first: 80."),
        ({"images": [{"id": 9}]}, r"no JSON file of COCO's format \(images, entry 1: KeyError"),
        ({"annotations": [{"id": 1, "image_id": 9, "category_id": 5, "bbox": [1, 2]}]}, "annotations, entry 1"),
        ({"images": [{"id": 9, "file_name": "a", "width": -3, "height": 2}]}, "not those of an image"),
    ],
)
def test_what_is_wrong_is_told(
    written: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        read_coco(tmp_path, written(**changes), USUAL)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"images": [{"id": 1}', '{"images": [1 2]}', '{"images"', "[" * 9999])
def test_what_is_no_object_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(UserError, match="no JSON file of COCO's format"):
        read_coco(tmp_path, tmp_path / "boxes.json", USUAL)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json cannot be read \(No such file"):
        read_coco(tmp_path, tmp_path / "none.json", USUAL)


def test_missing_images(written: Callable[..., Path], tmp_path: Path) -> None:
    found = read_coco(tmp_path, written(), USUAL)
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    with pytest.raises(UserError, match=r"1 of the 3 images .* are not in .* \(first: empty.jpg\)"):
        check_files(found, 0.0)
    assert check_files(found, 0.5) == 1
    with pytest.raises(UserError, match="is not a folder: pass the folder of the images"):
        check_files(read_coco(tmp_path / "gone", written(), USUAL), 1.0)


def test_categories_of_both_splits(tmp_path: Path) -> None:
    files = []
    for name, other in (("train", "cat"), ("val", "cow")):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content(categories=[{"id": 5, "name": other}, {"id": 2, "name": "ant"}])))
        files.append(read_coco(tmp_path, path, USUAL))
    with pytest.raises(UserError, match=r"category 5 is 'cat' in .*train.json and 'cow' in .*val.json"):
        check_same_categories(*files)
    check_same_categories(files[0], files[0])


def test_what_lies_where() -> None:
    with pytest.raises(UserError, match=r"data\.train_images is not set"):
        open_split(DetectionDataConfig(), "train", 0.0)
    with pytest.raises(UserError, match=r"coco/annotations/instances_val2017\.json cannot be read"):
        open_split(DetectionDataConfig(root=Path("coco")), "val", 0.0)


class Drops(io.StringIO):
    """Gives a few characters at a time, so that every value is cut somewhere."""

    def read(self, size: int | None = -1) -> str:
        return super().read(3)


def test_values_that_are_cut_anywhere_are_read_whole() -> None:
    rng = np.random.default_rng(3)
    value = {
        "a": [1, 22.5e3, "x\\\"]}", {"deep": [[1], {}]}, None, True],
        "empty": [],
        "alone": {"k": [1, 2]},
        "numbers": rng.integers(-(10**6), 10**6, 50).tolist(),
        "text": ["\u00e9\U0001f600" * 5],
    }  # fmt: skip
    for indent in (None, 2):
        found: dict[str, Any] = {}
        for key, element in StreamedJSON(Drops(json.dumps(value, indent=indent))).elements():
            if isinstance(value[key], list):
                found.setdefault(key, []).append(element)
            else:
                found[key] = element
        assert found == {key: each for key, each in value.items() if each}


def test_memory_is_of_the_boxes_not_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_json, "CHUNK", 2**16)
    path = tmp_path / "boxes.json"
    polygon = [round(x, 2) for x in np.random.default_rng(0).uniform(0, 40, 2000).tolist()]
    many = [box(i, 9, 5, [1, 2, 3, 4], segmentation=[polygon]) for i in range(300)]
    path.write_text(json.dumps(content(annotations=many)))
    size = path.stat().st_size
    del many
    tracemalloc.start()
    found = read_coco(tmp_path, path, USUAL)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.boxes.labels) == 300
    assert size > 3_000_000 and peak < 1_000_000

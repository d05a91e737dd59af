"""Images and boxes as a detector sees them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mgd_ssl.config import USUAL
from mgd_ssl.errors import UserError
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.tasks.detection.coco import Annotated, read_coco
from mgd_ssl.tasks.detection.padding import valid_positions
from mgd_ssl.tasks.detection.samples import TrainingImages, WholeImages, resized_size
from mgd_ssl.tasks.detection.uploaded import Uploaded
from tests.tasks.detection.shapes import write_shapes

CPU = Runtime(torch.device("cpu"), None, torch.contiguous_format, 1)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Annotated:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, "train", 6, seed=0)
    return read_coco(root / "train2017", root / "annotations" / "instances_train2017.json", USUAL)


@pytest.mark.parametrize(
    ("size", "side", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # as detectron2's ResizeShortestEdge gives them
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 640, 1333, (640, 959)),
        ((300, 900), 800, 1333, (444, 1333)),
        ((1, 5000), 800, 1333, (1, 1333)),
    ],
)
def test_sizes(size: tuple[int, int], side: int, longest: int, expected: tuple[int, int]) -> None:
    assert resized_size(*size, side, longest) == expected


def test_boxes_follow_their_pixels(shapes: Annotated) -> None:
    """Inside every box, where it is moved to, are the bright pixels of its shape."""
    images = TrainingImages(shapes, (60, 90, 120), 400, seed=1)
    batch = images.__getitems__([(epoch, index) for epoch in range(3) for index in range(6)])
    assert len(batch.images) == 18 and batch.images.shape[1] % 32 == batch.images.shape[2] % 32 == 0
    seen = set()
    for i, target in enumerate(batch.targets(torch.device("cpu"))):
        height, width = batch.sizes[i].tolist()
        seen.add(min(height, width))
        pixels = batch.images[i].float()
        assert not batch.images[i, height:].any() and not batch.images[i, :, width:].any()
        for corners, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            x1, y1, x2, y2 = corners
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            middle = round((y1 + y2) / 2)
            red, _, blue = pixels[middle, round((x1 + x2) / 2)].tolist()
            if len(target["labels"]) == 1:  # and nothing else lies on top
                assert max(red, blue) > 150 and (label == 0) == (red > blue)
                bright = (pixels[middle].amax(dim=1) > 150).nonzero()
                assert abs(float(bright.min()) - x1) < 3 and abs(float(bright.max()) + 1 - x2) < 3
    assert seen == {60, 90, 120}


def test_draws_are_functions_of_seed_epoch_and_image(shapes: Annotated) -> None:
    sides = tuple(range(64, 104))
    one, other = (TrainingImages(shapes, sides, 400, seed) for seed in (1, 2))
    drawn = [one.drawn(epoch, index) for epoch in range(20) for index in range(20)]
    assert drawn == [one.drawn(epoch, index) for epoch in range(20) for index in range(20)]
    assert drawn != [other.drawn(epoch, index) for epoch in range(20) for index in range(20)]
    assert {side for side, _ in drawn} == set(sides)
    assert 150 < sum(mirrored for _, mirrored in drawn) < 250


def test_crowds_are_no_targets_and_what_hangs_over_is_cut(shapes: Annotated) -> None:
    images = WholeImages(shapes, 60, 400)
    corners = np.array([[-10.0, 5, 20, 70], [0, 0, 5, 5], [59, 0, 70, 70]])
    boxes = shapes.boxes._replace(corners=corners, labels=np.array([1, 0, 1]), crowd=np.array([False, True, False]),
                                  areas=np.ones(3))  # fmt: skip
    changed = Annotated(
        shapes.path, shapes.images, shapes.ids, shapes.sizes, shapes.categories, boxes, np.array([0, 3])
    )
    images.annotated = changed
    prepared = images.prepared(np.zeros((60, 60, 3), np.uint8), 0, 30, mirrored=True)
    assert prepared.boxes.tolist() == [[20, 2.5, 30, 30], [0, 0, 0.5, 30]] and prepared.labels.tolist() == [1, 1]


def test_padding_is_zero_after_normalisation(shapes: Annotated) -> None:
    batch = WholeImages(shapes, 60, 400).__getitems__([0, 1])
    images, sizes = Uploaded(CPU)(batch)
    for image, pixels, (h, w) in zip(images, batch.images, sizes.tolist(), strict=True):
        assert not image[:, h:].any() and not image[:, :, w:].any()
        expected = pixels[:h, :w].permute(2, 0, 1) / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        expected /= torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        torch.testing.assert_close(image[:, :h, :w], expected, rtol=1e-4, atol=1e-5)


def test_positions_of_a_map_that_lie_on_the_image() -> None:
    sizes = torch.tensor([[64, 33], [32, 64]])
    valid = valid_positions(sizes, (64, 64), (4, 4))[:, 0]  # stride 16
    assert valid[0].tolist() == [[True, True, True, False]] * 4  # column 2 begins at pixel 32 < 33
    assert valid[1].tolist() == [[True] * 4] * 2 + [[False] * 4] * 2


def test_a_broken_validation_image_is_named(shapes: Annotated, tmp_path: Path) -> None:
    broken = read_coco(tmp_path, shapes.path, USUAL)
    for i in range(6):
        Image.new("RGB", (20, 20)).save(tmp_path / broken.images.name(i))
    (tmp_path / broken.images.name(2)).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"000000000002\.jpg cannot be decoded .*: mend it"):
        WholeImages(broken, 32, 64).__getitems__([1, 2])
    batch = TrainingImages(broken, (32,), 64, 0).__getitems__([(0, 2)])
    assert [name for name, _ in batch.unreadable] == ["000000000002.jpg"] and int(batch.indices[0]) != 2

"""The demo from end to end on fewer images, and its image set."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import mgd_ssl.commands.demo as demo
from mgd_ssl.demo import study
from mgd_ssl.demo.textures import TEXTURES, ImageSet, make_image


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


def test_image_set_is_a_function_of_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ImageSet(seed, classes=4, train_per_class=3, val_per_class=2).write(tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_image_set_has_the_imagenet_layout(tmp_path: Path) -> None:
    ImageSet(classes=len(TEXTURES), train_per_class=2, val_per_class=1, size=40).write(tmp_path)
    for split, count in (("train", 2), ("val", 1)):
        assert sorted(folder.name for folder in (tmp_path / split).iterdir()) == sorted(t.__name__ for t in TEXTURES)
        for folder in (tmp_path / split).iterdir():
            images = list(folder.glob("*.jpg"))
            assert len(images) == count
            assert Image.open(images[0]).size == (40, 40)


@pytest.mark.parametrize("texture", TEXTURES, ids=lambda texture: texture.__name__)
def test_textures_have_contrast_and_differ_from_image_to_image(texture: object) -> None:
    images = [make_image(texture, 48, np.random.default_rng(i)).astype(float) for i in range(4)]  # type: ignore[arg-type]
    assert min(image.std() for image in images) > 10
    assert min(np.abs(a - b).mean() for a, b in itertools.pairwise(images)) > 5


def test_unknown_number_of_classes() -> None:
    with pytest.raises(ValueError, match="from 2 to 16"):
        ImageSet(classes=17)


def test_demo_ends_with_a_table_and_a_picture_and_does_not_repeat_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "TRAIN_PER_CLASS", 6)
    monkeypatch.setattr(study, "VAL_PER_CLASS", 2)
    arguments = ["--out", str(tmp_path / "demo"), "--device", "cpu"]
    assert demo.main(arguments) == 0
    table = pd.read_csv(tmp_path / "demo" / "table.csv")
    assert table["method"].tolist() == ["chance", "random", "random", "MoCo v2", "MoCo v2", "MoCo v2 + MGD"]
    assert table["k-NN top-1"][0] == 6.2
    assert Image.open(tmp_path / "demo" / "demo.png").size[0] > 1000
    printed = capsys.readouterr().out
    assert "MoCo v2 + MGD" in printed
    assert "96 training images" in " ".join(printed.split())

    results = sorted((tmp_path / "demo" / "runs").rglob("checkpoints/*.pt"))
    written = [path.stat().st_mtime_ns for path in results]
    assert demo.main(arguments) == 0
    assert [path.stat().st_mtime_ns for path in results] == written

"""CUB-200-2011 as it unpacks, and every way in which it can be broken."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mgd_ssl.cli import main
from mgd_ssl.data.sources import scan_labelled
from mgd_ssl.errors import UserError
from tests.conftest import write_images


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    """Two classes of three images, two of each for training, as the archive unpacks."""
    root, lines = tmp_path / "CUB_200_2011", []
    for label, name in enumerate(("001.Albatross", "002.Auklet"), start=1):
        for number, path in enumerate(write_images(root / "images" / name, 3, seed=label)):
            lines.append((f"{name}/{path.name}", label, int(number < 2)))
    numbered = list(enumerate(lines, start=1))
    tables = {
        "images.txt": [f"{i} {path}" for i, (path, _, _) in numbered],
        "image_class_labels.txt": [f"{i} {label}" for i, (_, label, _) in numbered],
        "train_test_split.txt": [f"{i} {flag}" for i, (_, _, flag) in numbered],
        "classes.txt": ["1 001.Albatross", "2 002.Auklet"],
    }
    for name, content in tables.items():
        (root / name).write_text("\n".join(content) + "\n")
    return root


def test_cub_is_read_as_it_unpacks(cub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, val = scan_labelled(cub / "train", cub / "val")
    assert [train.images.name(i) for i in range(4)] == [
        f"{name}/{i:04d}.jpg" for name in ("001.Albatross", "002.Auklet") for i in range(2)
    ]
    assert train.labels.tolist() == [0, 0, 1, 1] and val.labels.tolist() == [0, 1]
    assert val.images.name(1) == "002.Auklet/0002.jpg"
    args = ["knn", "--checkpoint", "random:thin_resnet10", "--data", str(cub), "--k", "1", "--image-size", "32"]
    assert main([*args, "--workers", "0", "--runtime.device", "cpu"]) == 0
    assert "4 voting and 2 classified" in capsys.readouterr().out


Damage = Callable[[Path], object]


def rewritten(name: str, old: str, new: str) -> Damage:
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda root: (root / "image_class_labels.txt").unlink(), "image_class_labels.txt is missing"),
        (rewritten("images.txt", "6 002.Auklet/0002.jpg\n", ""), "id 6 is in image_class_labels.txt and not in images"),
        (rewritten("train_test_split.txt", "2 1\n", ""), "id 2 is in images.txt and not in train_test_split.txt"),
        (rewritten("image_class_labels.txt", "1 1\n", "1 9\n"), "names class 9, which classes.txt does not"),
        (rewritten("images.txt", "1 001", "one 001"), "line 1 of"),
        (rewritten("classes.txt", "2 002.Auklet", "2 002.Auklet\n3 003.Finch"), "class 003.Finch has no image"),
        (rewritten("train_test_split.txt", "1 1\n", "1 yes\n"), "holds the flag yes"),
    ],
)
def test_broken_tables_of_cub(cub: Path, damage: Damage, told: str) -> None:
    damage(cub)
    with pytest.raises(UserError) as caught:
        scan_labelled(cub / "train", cub / "val")
    assert told in str(caught.value) and "\n" not in str(caught.value)

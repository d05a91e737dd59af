"""What runs of tasks need and only read: made once a process."""

from pathlib import Path
from typing import Any

import pytest

from mgd_ssl import pretrain
from mgd_ssl.tasks.classify import classify
from tests.conftest import write_images
from tests.runs import (
    Reference,
    tiny,
)
from tests.tasks.classify_runs import settings


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/<class> and val/<class> of three classes, 14 and 5 images each."""
    root = tmp_path_factory.mktemp("labelled")
    for split, count in (("train", 14), ("val", 5)):
        for label, name in enumerate(("ash", "birch", "cedar")):
            write_images(root / split / name, count, seed=10 * label + count)
    return root


@pytest.fixture(scope="session")
def teacher(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a trained thin_resnet14."""
    out = tmp_path_factory.mktemp("teachers") / "teacher"
    classify(**settings(photographs, out, student="thin_resnet14", optim={"epochs": 1}))
    return out


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Reference:
    """Folder of a finished run with the given changes, trained once for each of them."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    known: dict[str, Path] = {}

    def run(**changes: Any) -> Path:
        if repr(changes) not in known:
            settings = tiny(image_folder, folder / str(len(known)), **changes)
            known[repr(changes)] = Path(pretrain(**settings).out)
        return known[repr(changes)]

    return run

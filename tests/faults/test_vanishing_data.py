"""Data that vanish while a run reads them: it ends with a sentence."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from mgd_ssl import TrainingError, pretrain
from mgd_ssl.cli import main
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from tests.conftest import write_images
from tests.runs import flags, tiny

pytestmark = pytest.mark.usefixtures("cache")


# data that vanish


def test_data_that_vanish_while_training_end_it_with_3(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(image_folder, tmp_path / "photos")
    update = Update.__call__

    def unmounted(self: Update, inputs: Any, finished: int) -> StepOutput:
        if finished == 3:
            shutil.rmtree(tmp_path / "photos")
        return update(self, inputs, finished)

    monkeypatch.setattr(Update, "__call__", unmounted)
    arguments = ["pretrain", *flags(tiny(tmp_path / "photos", tmp_path / "run"))]
    assert main(arguments) == 3
    assert f"{tmp_path / 'photos' / 'train'} is gone: bring it back, then run the" in capsys.readouterr().err
    monkeypatch.setattr(Update, "__call__", update)
    assert main(arguments) == 2  # nothing is trained, as there is nothing to open
    shutil.copytree(image_folder, tmp_path / "photos")
    assert main(arguments) == 0


def test_labelled_images_that_vanish_while_training_end_it_with_3(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(image_folder, tmp_path / "photos")
    update = Update.__call__

    def emptied(self: Update, inputs: Any, finished: int) -> StepOutput:
        for path in (tmp_path / "photos" / "val").rglob("*.jpg"):
            path.unlink()
        return update(self, inputs, finished)

    monkeypatch.setattr(Update, "__call__", emptied)
    photos = tmp_path / "photos"
    knn = {"train": photos / "train", "val": photos / "val", "every_epochs": 1, "k": 3}
    with pytest.raises(TrainingError, match="50 images tried in a row are unreadable"):
        pretrain(**tiny(image_folder, tmp_path / "run", knn=knn))


def test_a_folder_of_unreadable_images_trains_nothing_and_ends_with_2(tmp_path: Path) -> None:
    for path in write_images(tmp_path / "photos" / "train", 60):
        path.write_bytes(b"?")
    assert main(["pretrain", *flags(tiny(tmp_path / "photos", tmp_path / "run"))]) == 2

"""The lines beside the student's k-NN accuracy belong to the protocol they are shown under."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgd_ssl import Interrupted, pretrain
from mgd_ssl.data.folder import ImageList
from mgd_ssl.tasks.student import PretrainResult
from tests.conftest import write_images
from tests.runs import rows, stop_after, tiny

LINES = ("random_top1", "random_top5", "teacher_top1", "teacher_top5")


def knn(images: Path, **changes: Any) -> dict[str, Any]:
    return {"train": images / "train", "val": images / "val", "every_epochs": 1, "k": 3} | changes


def lines(run: Path, protocol: str) -> set[tuple[float, ...]]:
    """The lines of all k-NN rows with a word in their protocol."""
    found = [row for row in rows(run) if row["kind"] == "knn" and protocol in row["protocol"]]
    return {tuple(row[name] for name in LINES) for row in found}


def stopped_then_continued(first: dict[str, Any], then: dict[str, Any], step: int = 5) -> PretrainResult:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(monkeypatch, step, signal.SIGTERM)
        with pytest.raises(Interrupted):
            pretrain(**first)
    return pretrain(**then)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, image_folder: Path, teacher_file: Path
) -> dict[int, PretrainResult]:
    """Runs with k-NN from the start, by their k."""
    folder = tmp_path_factory.mktemp("whole")
    settings = {"teacher": teacher_file, "optim": {"epochs": 2}}
    return {k: pretrain(**tiny(image_folder, folder / str(k), knn=knn(image_folder, k=k), **settings)) for k in (3, 20)}


@pytest.mark.parametrize("before", [None, 3], ids=["switched on", "another k"])
def test_a_continued_run_measures_the_lines_of_a_new_protocol(
    before: int | None, whole: dict[int, PretrainResult], image_folder: Path, tmp_path: Path, teacher_file: Path
) -> None:
    settings = {"teacher": teacher_file, "optim": {"epochs": 2}}
    monitored = {} if before is None else {"knn": knn(image_folder, k=before)}
    first = tiny(image_folder, tmp_path / "run", **settings, **monitored)
    then = tiny(image_folder, tmp_path / "run", **settings, knn=knn(image_folder, k=20))
    result = stopped_then_continued(first, then)
    assert result.knn == whole[20].knn  # the encoder the run began with, not the student as it is
    assert (tmp_path / "run" / "encoder.pt").is_file()
    for k in (3, 20):
        expected = lines(Path(whole[k].out), f"k={k} ")
        assert len(expected) == 1
        assert lines(tmp_path / "run", f"k={k} ") == (set() if k == 3 and before is None else expected)
    assert lines(Path(whole[3].out), "k=3 ") != lines(Path(whole[20].out), "k=20 ")  # else this says nothing


def test_as_many_other_images_are_another_protocol(
    whole: dict[int, PretrainResult], image_folder: Path, tmp_path: Path, teacher_file: Path
) -> None:
    for split, count in (("train", 24), ("val", 6)):
        for label in range(2):
            write_images(tmp_path / "other" / split / str(label), count, seed=100 + label)
    assert len(ImageList.scan(tmp_path / "other" / "train")) == 48
    settings = {"teacher": teacher_file, "optim": {"epochs": 2}}
    first = tiny(image_folder, tmp_path / "run", **settings, knn=knn(image_folder))
    then = tiny(image_folder, tmp_path / "run", **settings, knn=knn(tmp_path / "other"))
    result = stopped_then_continued(first, then)
    reference = pretrain(**tiny(image_folder, tmp_path / "reference", **settings, knn=knn(tmp_path / "other")))
    assert result.knn == reference.knn
    assert not np.array_equal([whole[3].knn[name] for name in LINES], [reference.knn[name] for name in LINES])

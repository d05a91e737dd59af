"""How long the faults are looked for, and the runs and the disk they are put into."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from linear_eval import linear
from mgd_ssl import Interrupted, pretrain
from tests.conftest import write_images
from tests.faults.disk import Disk, small_disk
from tests.faults.failing import Patch, settings_of
from tests.linear_eval.conftest import BASE, write_protocol
from tests.runs import (
    stop_after,
    tiny,
    trained_teacher,
)


@pytest.fixture(scope="session")
def rounds() -> int:
    """How many times the usual number of random cases a test tries: 1, or what `MGD_FAULTS` says."""
    return int(os.environ.get("MGD_FAULTS", "1"))


# what is no file


@pytest.fixture
def alarm() -> Iterator[None]:
    """What waits for ten seconds waits for ever."""

    def late(number: int, frame: object) -> None:
        pytest.fail("it hangs")  # no Exception, which would be an unreadable image

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 10)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


# files that are read


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """A finished guided run in `run`, its teacher in `teacher`, and the same run stopped at step 5 in `stopped`."""
    base = tmp_path_factory.mktemp("weights")
    teacher = trained_teacher(base, image_folder)
    pretrain(**tiny(image_folder, base / "run", teacher=teacher))
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(monkeypatch, 5)
        with pytest.raises(Interrupted):
            pretrain(**tiny(image_folder, base / "stopped", teacher=teacher))
    return base


@pytest.fixture(scope="session")
def evaluated(folder: Path, image_folder: Path) -> dict[str, Any]:
    """Settings of a finished evaluation, which has saved its state after every epoch."""
    settings: dict[str, Any] = {
        "checkpoint": folder / "run" / "encoder.pt", "data": image_folder, "out": folder / "linear",
        "protocol": str(write_protocol(folder / "small.toml", BASE)), "image_size": 32, "workers": 0,
        "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("linear_eval.probe.SAVE_SECONDS", -1)
        linear(**settings)
    return settings


@pytest.fixture
def settings(folder: Path, image_folder: Path, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Settings of a copy of one of the runs, which the test may damage."""

    def copy(name: str) -> dict[str, Any]:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        shutil.copytree(folder / name, tmp_path / name)
        return tiny(image_folder, tmp_path / name, teacher=folder / "teacher" / "encoder.pt")

    return copy


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images in train/, and 4 that cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 48)
    for number in range(4):
        (folder / "train" / f"broken{number}.jpg").write_text("<html>404</html>")
    return folder


@pytest.fixture(scope="session")
def uninterrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(pretrain(**settings_of(images, tmp_path_factory.mktemp("uninterrupted") / "run")).out)


@pytest.fixture(scope="session")
def stopped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after step 5 of 9."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with Patch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            pretrain(**settings_of(images, out))
    return out


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted

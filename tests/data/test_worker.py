"""Data workers as processes: what they say, how they end, and that no lock of the parent stops them."""

import logging
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mgd_ssl import pretrain
from mgd_ssl.data.images import Noted
from mgd_ssl.data.loader import batches
from mgd_ssl.data.samples import Samples
from mgd_ssl.errors import TrainingError
from mgd_ssl.run.log import RunLog, logger
from tests.runs import children, ended, gone, hold_at, start, steps_saved, tiny, wait_for
from tests.terminal import ENV, Terminal

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    one = Terminal()
    yield one
    one.close()


# the display


def hold_the_lock_at_every_fork() -> None:
    """Have a thread hold the display's locks whenever a process is forked, and warn and log in every worker."""
    wanted, held, released = threading.Event(), threading.Event(), threading.Event()
    logs: list[RunLog] = []
    enter, load, main = RunLog.__enter__, Samples.load, os.getpid()

    def hold() -> None:
        while True:
            wanted.wait()
            console = logs[-1]._console
            with logs[-1]._bar._lock, console._lock:
                held.set()
                released.wait()

    def before() -> None:
        if logs:
            released.clear()
            wanted.set()
            held.wait()

    def after() -> None:
        wanted.clear()
        held.clear()
        released.set()

    def entered(self: RunLog) -> RunLog:
        enter(self)
        assert self._live is not None
        logs.append(self)
        return self

    def loaded(self: Samples, index: int, noted: Noted, how: Callable[..., Any]) -> Any:
        if os.getpid() != main:
            warnings.warn("palette images want care", FutureWarning, stacklevel=1)
            logger.warning("said by a worker")
        return load(self, index, noted, how)

    threading.Thread(target=hold, daemon=True).start()
    os.register_at_fork(before=before, after_in_parent=after)
    RunLog.__enter__ = entered  # type: ignore[method-assign]
    Samples.load = loaded  # type: ignore[method-assign]


def test_workers_start_and_warn_while_the_display_is_locked(
    image_folder: Path, tmp_path: Path, teacher_file: Path, terminal: Terminal
) -> None:
    knn = {"train": image_folder / "train", "val": image_folder / "val", "every_epochs": 1, "k": 3}
    settings = tiny(image_folder, tmp_path / "run", teacher=teacher_file, knn=knn, data={"workers": 1})
    process = start(settings, terminal.path, hold_the_lock_at_every_fork, env=ENV)
    assert ended(process) == 0
    told = (tmp_path / "run" / "log.txt").read_text()
    assert told.count("FutureWarning: palette images want care") == 1  # although every worker warned
    assert "WARNING said by a worker" in told
    assert "said by a worker" in terminal.shown
    assert "palette" not in terminal.shown  # nor any other noise
    assert "k-NN of the student" in terminal.shown and "k-NN of the teacher" in terminal.shown
    assert "matching" in terminal.shown.partition("matching before training")[0]  # a bar before the message


# what workers say


class Talking:
    """A data set whose batches come with a warning and a message."""

    def __getitems__(self, keys: list[int]) -> list[int]:
        warnings.warn("a" * 10, Image.DecompressionBombWarning, stacklevel=1)
        logger.info("batch %d", keys[0])
        logging.getLogger("somebody.else").warning("elsewhere")
        print("printed")
        return keys


def test_what_workers_say_comes_with_their_batches(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        caplog.at_level(logging.INFO, "mgd_ssl"),
        pytest.warns(RuntimeWarning, match="DecompressionBombWarning: aaaaaaaaaa") as warned,
        batches(Talking(), [[i] for i in range(6)], 2, pin=False) as loader,  # type: ignore[arg-type]
    ):
        assert list(loader) == [[i] for i in range(6)]
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if text.startswith("batch")] == [f"batch {i}" for i in range(6)]
    assert said.count("somebody.else: elsewhere") == 6
    assert capfd.readouterr().err == ""
    assert warned[0].filename == __file__


# how workers end


class Stuck:
    """A data set that never gives its second batch."""

    def __getitems__(self, keys: list[int]) -> list[int]:
        while keys[0]:
            time.sleep(1)
        return keys


def test_a_stuck_worker_does_not_outlive_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # torch's patience
    with batches(Stuck(), [[0], [1]], 1, pin=False) as loader:  # type: ignore[arg-type]
        assert next(loader) == [0]
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_told_in_a_sentence() -> None:
    def lose_a_worker() -> None:
        with batches(Stuck(), [[0], [1]], 1, pin=False) as loader:  # type: ignore[arg-type]
            next(loader)
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            next(loader)

    with pytest.raises(TrainingError, match=r"^a data worker \(pid \d+\) was killed by SIGKILL: is there"):
        lose_a_worker()
    assert not multiprocessing.active_children()


def stick_at(flag: Path) -> None:
    """Have the workers of this process hang in the fourth batch they make."""
    load, main, calls = Samples.load, os.getpid(), list[int]()

    def stuck(self: Samples, index: int, noted: Noted, how: Callable[..., Any]) -> Any:
        calls.append(index)
        while os.getpid() != main and len(calls) > 3 * 16:
            flag.touch()
            time.sleep(1)
        return load(self, index, noted, how)

    Samples.load = stuck  # type: ignore[method-assign]


@pytest.mark.parametrize("how", ["SIGKILL", "Ctrl-C twice"])
def test_a_hanging_worker_ends_with_its_run(how: str, image_folder: Path, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    process = start(tiny(image_folder, tmp_path / "run", data={"workers": 1}), tmp_path / "stderr", stick_at, flag)
    wait_for(flag.exists, process)
    workers = children(process.pid)
    assert workers and not gone(workers)
    assert process.pid is not None
    if how == "SIGKILL":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1.2)
        os.killpg(process.pid, signal.SIGINT)
    assert ended(process) == (-signal.SIGKILL if how == "SIGKILL" else -signal.SIGINT)
    wait_for(lambda: gone(workers))


def test_a_run_whose_worker_is_killed_ends_in_a_sentence_and_goes_on(image_folder: Path, tmp_path: Path) -> None:
    settings, flag = tiny(image_folder, tmp_path / "run", data={"workers": 1}), tmp_path / "flag"
    process = start(settings, tmp_path / "stderr", hold_at, 5, flag)
    wait_for(flag.exists, process)
    [worker] = children(process.pid)
    os.kill(worker, signal.SIGKILL)
    flag.unlink()
    assert ended(process) == 3
    told = (tmp_path / "stderr").read_text()
    assert f"mgd-ssl: a data worker (pid {worker}) was killed by SIGKILL: " in told
    assert "Traceback" not in told
    pretrain(**settings)
    assert steps_saved(tmp_path / "run")[-1] == 9

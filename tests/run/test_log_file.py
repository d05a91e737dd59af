"""log.txt says why a run ended."""

import errno
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import mgd_ssl.run.log_file
from linear_eval import linear
from mgd_ssl import Interrupted, UserError, pretrain
from mgd_ssl.errors import TrainingError
from mgd_ssl.files import Appended, DiskError
from mgd_ssl.run.log import RunLog, logger
from mgd_ssl.training.update import Update
from tests.linear_eval.conftest import BASE, weights, write_protocol
from tests.runs import stop_after, tiny


def lines(run: Path) -> list[str]:
    return (run / "log.txt").read_text().splitlines()


def test_a_stop_by_a_signal_is_the_last_line(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 5, signal.SIGUSR2)
    with pytest.raises(Interrupted):
        pretrain(**tiny(image_folder, tmp_path / "run"))
    told = "WARNING stopped by SIGUSR2 after step 5: the same command continues from there"
    assert lines(tmp_path / "run")[-1].endswith(told)
    assert (tmp_path / "run" / "log.txt").read_text().count("stopped by") == 1


@pytest.mark.parametrize("error", [TrainingError("the loss is not finite: lower lr"), KeyError("random_top1")])
def test_the_error_of_a_run_is_its_last_words(
    error: Exception, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(Update, "__call__", fail)
    with pytest.raises(type(error)):
        pretrain(**tiny(image_folder, tmp_path / "run"))
    text = (tmp_path / "run" / "log.txt").read_text()
    if isinstance(error, UserError):
        assert lines(tmp_path / "run")[-1].endswith(f"ERROR {error}") and "Traceback" not in text
    else:
        assert "ERROR Traceback (most recent call last)" in text and lines(tmp_path / "run")[-1] == f"KeyError: {error}"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 3}, "holds a run with other settings (seed: 0 -> 3): restore them"),
        ({"optim": {"batch_size": 15}}, "is not a multiple of optim.batch_size 15"),
        ({"teacher": Path("nowhere.pt")}, "nowhere.pt does not exist"),
    ],
)
def test_a_start_that_fails_is_told_in_the_log_of_the_run(
    changes: dict[str, Any], told: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Interrupted):
            pretrain(**tiny(image_folder, tmp_path / "run"))
    before = lines(tmp_path / "run")
    with pytest.raises(UserError):
        pretrain(**tiny(image_folder, tmp_path / "run", **changes))
    assert lines(tmp_path / "run")[:-1] == before
    assert "ERROR" in lines(tmp_path / "run")[-1] and told in lines(tmp_path / "run")[-1]


def test_checkpoints_that_are_all_damaged_are_told_in_the_log(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Interrupted):
            pretrain(**tiny(image_folder, tmp_path / "run"))
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(b"?")
    with pytest.raises(UserError, match="is whole"):
        pretrain(**tiny(image_folder, tmp_path / "run"))
    assert "is whole: restore one, or start a new --out" in lines(tmp_path / "run")[-1]


def test_a_failed_start_in_an_empty_or_a_launchers_folder_does_not_refuse_the_corrected_command(
    image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "run" / "jobs").mkdir(parents=True)
    with pytest.raises(UserError):
        pretrain(**tiny(image_folder, tmp_path / "run", optim={"batch_size": 15}))
    assert "optim.batch_size 15" in lines(tmp_path / "run")[-1]
    assert sorted(os.listdir(tmp_path / "run")) == ["jobs", "log.txt"]
    pretrain(**tiny(image_folder, tmp_path / "run", optim={"epochs": 1}))


def test_a_failed_start_writes_nothing_where_there_is_no_run(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    for out in (tmp_path / "none", tmp_path / "mine"):
        with pytest.raises(UserError):
            pretrain(**tiny(image_folder, out, optim={"batch_size": 15}))
    assert sorted(os.listdir(tmp_path)) == ["mine"] and os.listdir(tmp_path / "mine") == ["thesis.tex"]


def test_only_the_first_rank_tells(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(mgd_ssl.run.log_file, "rank", lambda: 1)
    with pytest.raises(UserError):
        pretrain(**tiny(image_folder, tmp_path / "run", optim={"batch_size": 15}))
    assert os.listdir(tmp_path / "run") == []


def test_an_evaluation_tells_too(image_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "checkpoint": weights(tmp_path / "weights.pt"), "data": image_folder, "out": tmp_path / "out", "image_size": 32,
        "workers": 0, "runtime": {"device": "cpu", "threads": 1},
        "protocol": str(write_protocol(tmp_path / "p.toml", BASE)),
    }  # fmt: skip
    linear(**settings)
    log = tmp_path / "out" / "linear_small_seed0"
    with pytest.raises(UserError, match="holds an evaluation of something else"):
        linear(**settings | {"image_size": 48})
    assert "image_size: 32 -> 48" in lines(log)[-1]
    with pytest.raises(UserError, match="does not exist"):
        linear(**settings | {"checkpoint": tmp_path / "none.pt"})
    assert "none.pt does not exist" in lines(log)[-1]


def test_a_message_the_disk_does_not_take_ends_the_run_at_its_next_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append = Appended.append

    def full(self: Appended, content: bytes) -> None:
        if self.path.name == "log.txt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, content)

    with RunLog(tmp_path, 9, 0) as log:
        monkeypatch.setattr(Appended, "append", full)
        logger.info("lost")  # does not raise, wherever it is called
        assert logging.raiseExceptions
        with pytest.raises(DiskError, match=r"log.txt cannot be written \(No space left on device\): make room"):
            log.write("train", 1, {"loss": 1.0})
        with pytest.raises(DiskError, match=r"log.txt cannot be written"):
            log.synced_bytes()
    assert "Traceback" not in capsys.readouterr().err


def test_names_that_are_no_text_are_written(tmp_path: Path) -> None:
    with RunLog(tmp_path, 9, 0):
        logger.info("%s", os.fsdecode(b"caf\xe9.jpg"))
    assert lines(tmp_path)[-1].endswith(r"INFO caf\udce9.jpg")

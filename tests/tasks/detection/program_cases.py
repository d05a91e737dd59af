"""Cases of the settings of `detect` that say how it runs: checkpoint, runtime, log."""

import pytest
import torch

from mgd_ssl.config import RuntimeConfig
from mgd_ssl.errors import UserError
from mgd_ssl.run import runtime as runtime_module
from mgd_ssl.run.runtime import process as this_process
from mgd_ssl.tasks.detection.config import DetectConfig
from mgd_ssl.tasks.detection.detect import detect
from tests.runs import rows, steps_saved
from tests.tasks.detection.cases import case
from tests.tasks.detection.watched import Runs
from tests.tasks.watched import Seen, sinks_noted


def steps_of(seen: Seen, kind: str) -> list[int]:
    return [row["step"] for row in rows(seen.out) if row["kind"] == kind]


@case
def checkpoint_every_steps(run: Runs) -> None:
    assert run("odd").saved == [4, 5, 6]  # and at the end of every epoch of five steps


@case
def checkpoint_keep(run: Runs) -> None:
    assert steps_saved(run("odd").out) == [5, 6]


@case
def runtime_device(run: Runs) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UserError, match="torch sees no GPU"):
            detect(**run.plainly("gpu", runtime={"device": "cuda"}))
    assert run("plain").task.runtime.device.type == "cpu"


@case
def runtime_precision(run: Runs) -> None:
    assert (run("plain").dtype, run("other").dtype) == (torch.float32, torch.bfloat16)


@case
def runtime_channels_last(run: Runs) -> None:
    assert (run("plain").layouts, run("other").layouts) == ([True, True], [False, False])


@case
def runtime_deterministic(run: Runs) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        chosen: list[bool] = []
        monkeypatch.setattr(runtime_module, "choose_kernels", chosen.append)
        for name, answer in (("is_available", True), ("device_count", 1), ("set_device", None)):
            monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer: answer)
        for wanted in (False, True):
            config = DetectConfig(out=run.folder / "x", runtime=RuntimeConfig(deterministic=wanted, threads=1))
            with this_process(config.runtime.model_copy(update={"precision": "float32"})):
                pass
        assert chosen == [False, True]


@case
def runtime_compile(run: Runs) -> None:
    seen = run("other")
    assert seen.task.teacher is not None
    wanted = [seen.task.module.student.body, seen.task.teacher.backbone, seen.mgd]
    assert {id(module) for module in seen.compiled} == {id(module) for module in wanted}
    assert run("plain").compiled == []


@case
def runtime_threads(run: Runs) -> None:
    assert (run.two_of_each().threads, run("plain").threads) == (2, 1)


@case
def log(run: Runs) -> None:
    with sinks_noted() as opened:
        run.begun("logged", log=("wandb", "mlflow"))
    assert opened == ["wandb", "mlflow"]


@case
def runtime_log_every(run: Runs) -> None:
    assert (steps_of(run("odd"), "train"), steps_of(run("plain"), "train")) == ([4, 6], [4])

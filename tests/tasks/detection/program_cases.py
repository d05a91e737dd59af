"""Cases of the settings of `detect` that say how it runs: checkpoint and runtime."""

import pytest
import torch

from mgd_ssl.errors import UserError
from mgd_ssl.tasks.detection.detect import detect
from tests.runs import rows, steps_saved
from tests.tasks.detection.cases import case
from tests.tasks.detection.watched import Runs
from tests.tasks.watched import Seen


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
def runtime_log_every(run: Runs) -> None:
    assert (steps_of(run("odd"), "train"), steps_of(run("plain"), "train")) == ([4, 6], [4])

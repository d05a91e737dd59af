"""What is measured and saved on the way, and what a run computes with."""

import pytest
import torch

from mgd_ssl import UserError, pretrain
from mgd_ssl.config import RuntimeConfig
from mgd_ssl.run.runtime import process as this_process
from tests.runs import rows, stepper_for, steps_saved, tiny
from tests.setting_cases.runs import Runs, case

# k-NN


@case
def knn_train(run: Runs) -> None:
    found = run("odd").first.monitor
    assert found is not None and found.bank.root == run.images / "train" and run("plain").first.monitor is None


@case
def knn_val(run: Runs) -> None:
    found = run("odd").first.monitor
    assert found is not None and found.queries.root == run.images / "val"


@case
def knn_every_epochs(run: Runs) -> None:
    assert [row["step"] for row in rows(run("odd").out) if row["kind"] == "knn"] == [0, 6, 8]


@case
def knn_k(run: Runs) -> None:
    assert {k for _, k, _ in run("odd").voted} == {7}


@case
def knn_temperature(run: Runs) -> None:
    assert {temperature for *_, temperature in run("odd").voted} == {0.3}


@case
def knn_max_bank(run: Runs) -> None:
    assert {count for count, *_ in run("odd").voted} == {36}


# the program


@case
def checkpoint_every_steps(run: Runs) -> None:
    assert run("odd").saved == [2, 3, 4, 6, 8]  # and at the end of every epoch of two steps


@case
def checkpoint_keep(run: Runs) -> None:
    assert steps_saved(run("odd").out) == [3, 4, 6, 8]


@case
def runtime_device(run: Runs) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with this_process(RuntimeConfig(device="cpu", threads=1)) as runtime:
            assert runtime.device.type == "cpu"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UserError, match="torch sees no GPU"):
            pretrain(**tiny(run.images, run.folder / "gpu", runtime={"device": "cuda"}))


@case
def teacher_precision(run: Runs) -> None:
    maps = {}
    for wanted in ("float32", "bfloat16"):
        settings = tiny(run.images, run.folder / f"teacher in {wanted}", teacher=run.teacher, teacher_precision=wanted)
        stepper, batches = stepper_for(settings, 1)
        (_, _, targets, *_) = stepper.task.inputs(batches[0], 0)
        maps[wanted] = [target.map for target in targets["mgd"]]
    assert {each.dtype for each in maps["float32"]} == {torch.float32}
    assert {each.dtype for each in maps["bfloat16"]} == {torch.bfloat16}
    for exact, rounded in zip(*maps.values(), strict=True):
        cosine = torch.nn.functional.cosine_similarity(rounded.float().flatten(1), exact.flatten(1))
        assert cosine.mean() > 0.99  # a few values change their sign, where two of a group are nearly opposite


@case
def runtime_compile(run: Runs) -> None:
    task = run("other").first
    assert task.teacher is not None and task.mgd is not None and task.sight.teacher is not None
    teachers = [task.teacher.backbone, task.sight.teacher.backbone]  # in float32 for matching, and as in training
    wanted = [task.module.moco.encoder_q, task.module.moco.encoder_k, *teachers, task.mgd]
    assert {id(module) for module in run("other").compiled} == {id(module) for module in wanted}
    assert run("plain").compiled == []


@case
def runtime_threads(run: Runs) -> None:
    assert (run("odd").threads, run("plain").threads) == (2, 1)


@case
def runtime_log_every(run: Runs) -> None:
    assert [row["step"] for row in rows(run("odd").out) if row["kind"] == "train"] == [3, 6, 8]

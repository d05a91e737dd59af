"""The checks of a GPU, as far as they run without one: there the CPU is its own twin."""

import json
import re

import pytest
import torch

from mgd_ssl.bench import gpu_checks, gpu_teacher
from mgd_ssl.bench.config import StepConfig
from mgd_ssl.bench.gpu_checks import CHECKS, CPU, run_checks
from mgd_ssl.cli import main
from mgd_ssl.config import RuntimeConfig


def test_without_a_gpu_they_are_refused_kindly(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: make test-gpu checks it")
    assert main(["bench", "--only", "gpu"]) == 2
    assert re.search("torch sees no GPU.*run it where there is one", capsys.readouterr().err.replace("\n", " "))


def test_those_that_need_no_gpu_pass_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    small = StepConfig(
        student="thin_resnet10", teacher="thin_resnet14", image_size=48, batch_size=4, queue_size=64,
        runtime=RuntimeConfig(precision="float32"),
    )  # fmt: skip
    monkeypatch.setattr(gpu_checks, "SMALL", small)
    for name, value in {"ARCH": "thin_resnet14", "BATCH": 2, "SIZE": 48}.items():
        monkeypatch.setattr(gpu_teacher, name, value)
    names = ("twins", "views", "ring", "resume", "k-NN", "fused teacher against plain")
    found = run_checks(CPU, {name: CHECKS[name] for name in names})
    assert {name: numbers["passed"] for name, numbers in found.items()} == dict.fromkeys(names, True), found
    assert found["twins"]["loss_1"] == 0.0
    json.dumps(found)


def test_a_check_that_raises_has_failed_and_the_others_go_on() -> None:
    def broken(runtime: object) -> dict[str, object]:
        raise RuntimeError("no such kernel")

    found = run_checks(CPU, {"broken": broken, "fine": lambda runtime: {"passed": True}})
    assert not found["broken"]["passed"] and found["broken"]["error"].startswith("RuntimeError: no such kernel")
    assert found["fine"]["passed"]

"""Cases of the settings that every task has of how it runs: the same runs are looked at in the same way."""

from typing import Any

import pytest
import torch

from mgd_ssl.config import RuntimeConfig
from mgd_ssl.run import runtime as runtime_module
from mgd_ssl.run.runtime import process as this_process
from tests.tasks.cases import Cases


def add_to(cases: Cases) -> None:
    """Add them to the cases of a task, whose runs `plain` and `other` differ in them."""
    for case in (runtime_precision, runtime_channels_last, runtime_deterministic):
        cases(case)


def runtime_precision(run: Any) -> None:
    assert (run("plain").dtype, run("other").dtype) == (torch.float32, torch.bfloat16)


def runtime_channels_last(run: Any) -> None:
    assert (run("plain").layouts, run("other").layouts) == ([True, True], [False, False])


def runtime_deterministic(run: Any) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        chosen: list[bool] = []
        monkeypatch.setattr(runtime_module, "choose_kernels", chosen.append)
        for name, answer in (("is_available", True), ("device_count", 1), ("set_device", None)):
            monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer: answer)
        for wanted in (False, True):
            with this_process(RuntimeConfig(deterministic=wanted, precision="float32", threads=1)):
                pass
        assert chosen == [False, True]

"""Systems other than Linux: nothing that only Linux has is called when a module is imported, and what replaces it."""

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from packaging.requirements import Requirement

from mgd_ssl.cli import main
from mgd_ssl.config import RuntimeConfig
from mgd_ssl.errors import UserError
from mgd_ssl.run import runtime

ROOT = Path(__file__).parents[1]
HIDDEN = """
import importlib, os, pathlib, pkgutil, sys
import cv2, faiss, matplotlib, multiprocessing, pandas, scipy, simplejpeg, tensorboard, torchvision  # they may ask
import torch._dynamo, torch.distributed.elastic.multiprocessing, torch.distributed.launcher.api, submitit
import torch.utils.tensorboard, torchvision.models.detection, transformers, timm  # noqa

for name in ("sched_getaffinity", "sched_setaffinity", "posix_fallocate", "memfd_create", "pidfd_open"):
    if hasattr(os, name):
        delattr(os, name)

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource"):
            raise ModuleNotFoundError(f"no {name} here")

for name in ("fcntl", "resource"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
sys.platform = "darwin"

def watched(event, args):
    if event == "open" and str(args[0]).startswith(("/proc/", "/dev/shm", "/sys/")):
        raise RuntimeError(f"{args[0]} is opened")
sys.addaudithook(watched)

count = 0
for package in ("moco", "mgd_ssl", "linear_eval", "launchers"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if module.name != "mgd_ssl.run.sinks.trackio":  # not among what the tests install
            importlib.import_module(module.name)
            count += 1
print(count)
"""


def test_every_module_is_imported_without_what_only_linux_has() -> None:
    answer = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr[-2000:]
    modules = [p for name in ("moco", "mgd_ssl", "linear_eval", "launchers") for p in (ROOT / name).rglob("*.py")]
    assert int(answer.stdout.split()[-1]) > 0.9 * len(modules) - 30  # packages count once


def test_cores_where_the_system_binds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.delenv("MGD_SSL_CORES", raising=False)
    assert runtime.cores_here() == 6 and runtime.cores(4) == 1
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert runtime.cores_here() == 1


def using_mps() -> AbstractContextManager[runtime.Runtime]:
    return runtime.process(RuntimeConfig(device="mps", threads=1))


def test_apples_gpu_is_taken_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'mps' but torch sees no Apple GPU"), using_mps():
        pass
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with using_mps() as there:
        assert there.device == torch.device("mps")
    with runtime.process(RuntimeConfig(threads=1)) as there:
        assert there.device.type != "mps"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="which several processes cannot share"), using_mps():
        pass


def test_windows_is_told_of_wsl2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["pretrain"]) == 2
    assert "WSL2" in capsys.readouterr().err


class Machine(NamedTuple):
    sys_platform: str
    platform_machine: str
    faiss: str


@pytest.mark.parametrize(
    "machine",
    [
        Machine("linux", "x86_64", "faiss-gpu"),
        Machine("linux", "aarch64", "faiss-cpu"),
        Machine("darwin", "arm64", "faiss-cpu"),
        Machine("darwin", "x86_64", "faiss-cpu"),
    ],
)
def test_one_faiss_is_asked_for(machine: Machine) -> None:
    lines = [line.partition(" #")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    needed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    there = {"sys_platform": machine.sys_platform, "platform_machine": machine.platform_machine}
    wanted = [each.name for each in needed if each.marker is None or each.marker.evaluate(there)]
    assert [name for name in wanted if "faiss" in name] == [machine.faiss]

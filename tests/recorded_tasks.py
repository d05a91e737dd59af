"""Recorded runs of the published programs of classification and detection, and how they are compared."""

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mgd_ssl.run.runtime import Runtime

COPY = Path(__file__).parent / "reference" / "tasks"


FOLDER = Path(os.environ.get("MGD_TASK_REFERENCE", COPY))


REDUCED = sorted(FOLDER.glob("units_reducers_seed*.npz"))


RECORDED_REDUCERS = {"amp": "amp", "sp": "max", "sm": "sparse", "rd": "random_drop_everywhere"}


CPU = Runtime(torch.device("cpu"), None, torch.contiguous_format, 1)


Recorded = dict[str, np.ndarray]


def load_recipe() -> ModuleType:
    path = next(folder / "recipe_tasks.py" for folder in (FOLDER, COPY) if (folder / "recipe_tasks.py").is_file())
    spec = importlib.util.spec_from_file_location("recipe_tasks", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def close(found: Any, expected: Any, relative: float, absolute: float = 0.0) -> None:
    found, expected = (torch.as_tensor(np.asarray(value)).double() for value in (found, expected))
    torch.testing.assert_close(found, expected, rtol=relative, atol=absolute)


def assignment_of(flat: np.ndarray, channels: int) -> Tensor:
    """Entry g * C_s + s belongs to student channel s: [C_s, G]."""
    return tensor(flat.astype(np.int64)).view(-1, channels).T.contiguous()


# whole networks


def on_the_recording_cpu(replay: Callable[..., None], *args: Path) -> None:
    """Run in a process of its own with the kernels the runs were recorded with: AVX2, one thread."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as pool,
    ):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
        pool.submit(replay, *args).result()

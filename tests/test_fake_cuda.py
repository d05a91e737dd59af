"""On a GPU nothing mixes devices, waits for a value, or copies from memory that is not pinned; shown without one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fake_cuda import BATCH, SIZE

ROOT = Path(__file__).parents[1]
VIEWS = f"cpu to cuda, uint8 {BATCH}x{SIZE}x{SIZE}x3: does not wait"
ROWS = f"cpu to cuda, float32 2x{BATCH}x15: does not wait"
INDICES = f"cpu to cuda, int64 {BATCH}: does not wait"
CONSTANTS = {"cpu to cuda, float32 3x1x1: waits": 2}  # mean and deviation of the colours, once an evaluation

COPIES = {
    "bfloat16": {VIEWS: 2, ROWS: 1},
    "bfloat16, guided": {VIEWS: 2, ROWS: 1},
    "float16, guided": {VIEWS: 2, ROWS: 1},
    "eight ranks": {VIEWS: 2, ROWS: 1, INDICES: 4},  # rows sent and places of those received, there and back
    "matching": {VIEWS: 2},
    "k-NN features": {VIEWS: 2, **CONSTANTS, f"cuda to cpu, float32 {2 * BATCH}x128: waits": 1},
    "validation": {VIEWS: 2, **CONSTANTS, INDICES: 2},  # labels
    "probe, cached": {INDICES: 2},
    "probe, live": {VIEWS: 2, INDICES: 2},
}


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What every scenario does, in a process that pretends to have a GPU."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.fake_scenarios"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("scenario", COPIES)
def test_no_operation_mixes_devices_or_waits_for_a_value(seen: dict[str, Any], scenario: str) -> None:
    assert seen[scenario]["operations"] > 100  # it was at work on the GPU
    assert seen[scenario]["mixed"] == []
    assert seen[scenario]["reads"] == []


@pytest.mark.parametrize("scenario", COPIES)
def test_these_are_all_copies_between_main_memory_and_the_gpu(seen: dict[str, Any], scenario: str) -> None:
    assert seen[scenario]["copies"] == COPIES[scenario]


def test_every_scenario_is_expected(seen: dict[str, Any]) -> None:
    assert seen.keys() == COPIES.keys()

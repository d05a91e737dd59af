"""Bytes and launches of the compiled parts of a step on an H100, and that no kernel spills; shown without one.

The sizes are ResNet-50 -> ResNet-18 at 224 pixels, batch 256, in bfloat16. Read and written once, as little as the
algorithms allow (BatchNorm asks for two passes forward and two backward), the loss and its reduction take 2.50 GB.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.sm90_shapes import BATCH, HALF_BYTES, SIZE, STAGES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def lowered() -> dict[str, Any]:
    """What the compiler makes of every part, in a process that pretends to have a GPU."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed, which torch's builds for a GPU bring along")
    told = subprocess.run(
        [sys.executable, "-m", "tests.sm90_parts"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def test_loss_and_reduction_read_and_write_next_to_nothing_twice(lowered: dict[str, Any]) -> None:
    student = sum(BATCH * channels * edge**2 * HALF_BYTES for channels, edge in STAGES) / 1e9
    teacher = 4 * student
    # read the teacher and write the target; statistics, then the distance; sums for the gradient, then the gradient
    floors = {"reduction": teacher + student, "forward": 3 * student, "backward": 5 * student}
    assert sum(floors.values()) == pytest.approx(2.50, abs=0.01)
    for name, floor in floors.items():
        assert floor * 0.99 <= lowered[name]["gigabytes"] <= 1.15 * floor
    assert sum(lowered[name]["gigabytes"] for name in floors) <= 2.7


def test_a_finished_view_is_bytes_between_its_parts(lowered: dict[str, Any]) -> None:
    batch = BATCH * SIZE**2 * 3 / 1e9  # of bytes
    # the beginning, four operations that read twice, six passes of the blur, the last of which writes half precision
    floor = batch * (2 + 4 * 3 + 6 * 2 + 1)
    assert floor * 0.99 <= lowered["view"]["gigabytes"] <= 1.15 * floor
    assert lowered["view"]["gigabytes"] <= 1.2


def test_gradients_and_targets_are_channels_last(lowered: dict[str, Any]) -> None:
    expected = sorted([edge**2 * channels, 1, edge * channels, channels] for channels, edge in STAGES)
    assert sorted(lowered["backward"]["written"]) == expected
    assert sorted(lowered["reduction"]["written"]) == expected
    assert lowered["view"]["written"] == [[3 * SIZE**2, 1, 3 * SIZE, 3]]


@pytest.mark.parametrize(("name", "most"), [("reduction", 8), ("forward", 28), ("backward", 16), ("view", 21)])
def test_launches(lowered: dict[str, Any], name: str, most: int) -> None:
    assert 1 <= lowered[name]["launches"] <= most


@pytest.mark.parametrize("name", ["reduction", "forward", "backward", "view"])
def test_the_largest_kernel_spills_nothing_when_built_for_sm_90(lowered: dict[str, Any], name: str) -> None:
    largest = lowered[name]["largest"]
    assert 0 < largest["registers"] <= 128
    assert largest["local"] == 0 and largest["stack"] == 0

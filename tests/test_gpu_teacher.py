"""What a teacher on a GPU does between its convolutions, plain and fused; shown without one.

ResNet-50 at 224 pixels, batch 256, in bfloat16. Fused, it keeps biases, sums and ReLUs of the four tapped blocks alone,
and the sums that convolutions read.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.sm90_shapes import BATCH, HALF_BYTES, STAGES

ROOT = Path(__file__).parents[1]
TAPPED = sum(BATCH * 4 * channels * edge**2 * HALF_BYTES for channels, edge in STAGES) / 1e9


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """Operations, launches and bytes, in a process that pretends to have a GPU."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed, which torch's builds for a GPU bring along")
    told = subprocess.run(
        [sys.executable, "-m", "tests.gpu_teacher"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def test_only_what_is_tapped_has_operations_of_its_own(seen: dict[str, Any]) -> None:
    plain, fused = (seen[name]["eager"]["operations"] for name in ("plain", "fused"))
    assert plain["relu"] + plain["relu_"] == 49 and plain["add_"] == 16 and plain["convolution"] == 53
    assert fused["relu"] == fused["add"] == fused["bias of a convolution"] == len(STAGES)
    assert fused["convolution_relu"] + fused["convolution"] == 53
    assert not fused.keys() & {"relu_", "add_", "_to_copy", "copy_", "clone"}  # no weight is cast in a step


def test_eager_it_reads_and_writes_a_fifth_between_convolutions(seen: dict[str, Any]) -> None:
    assert seen["plain"]["eager"]["gigabytes"] == pytest.approx(29.9, abs=0.5)
    # a bias is read and written, a sum reads two maps and writes one, a ReLU is read and written
    assert seen["fused"]["eager"]["gigabytes"] == pytest.approx(7 * TAPPED, rel=0.01)
    assert seen["fused"]["eager"]["gigabytes"] <= 5.5


def test_compiled_it_is_worth_it_too(seen: dict[str, Any]) -> None:
    plain, fused = (seen[name]["compiled"] for name in ("plain", "fused"))
    assert 24 <= plain["gigabytes"] <= 26  # all of the forward pass
    assert 16 <= fused["gigabytes"] <= 18
    assert fused["launches"] <= 60 < 100 <= plain["launches"]

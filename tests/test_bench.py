"""The benchmark runs and tells what it says; nothing is timed here."""

import json
from typing import Any

import numpy as np
import pytest

from mgd_ssl.bench import verdict
from mgd_ssl.bench_views import Stages
from mgd_ssl.cli import main


def test_bench_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--student thin_resnet10 --teacher thin_resnet14 --image-size 48 --batch-size 4 --queue-size 64"
    assert main(["bench", *flags.split(), "--rounds", "1", "--warmup", "1"]) == 0
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    assert "thin_resnet14 -> thin_resnet10" in " ".join(printed.split())
    assert result["batch_size"] == 4
    assert min(result[key] for key in ("step_images_per_second", "bare_images_per_second", "step_over_bare")) > 0
    assert min(result["bare_peak_mb"], result["step_peak_mb"]) > 0
    sentence = " ".join(printed.split())
    assert "is the bottleneck: the step takes" in sentence and "through the cpu backend" in sentence
    assert_views_are_measured(result)


def assert_views_are_measured(result: dict[str, Any]) -> None:
    stages = {"decode", "crop and resize", "colours", "blur"}
    assert stages | {"whole, cpu", "whole, device", "published, cpu", "published, device"} == result["stages"].keys()
    assert all(min(cost["reference"], cost["fast"], cost["ratio"]) > 0 for cost in result["stages"].values())
    assert result["handover_us"] > 0 and result["cores"] >= 1


def test_bench_of_the_views_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "views", "--image-size", "32", "--rounds", "1", "--runtime.device", "cpu"]) == 0
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    assert_views_are_measured(result)
    assert "step_images_per_second" not in result
    assert "a core feeds" in printed


@pytest.mark.parametrize(("speed", "cores", "slower"), [(400.0, 1, "step"), (600.0, 1, "data"), (600.0, 2, "step")])
def test_the_verdict_compares_step_and_data(speed: float, cores: int, slower: str) -> None:
    views = {"whole, cpu": {"fast": 1900.0}}
    result = {"stages": views, "handover_us": 100.0, "backend": "cpu", "cores": cores, "device": "cpu"}
    sentence = verdict({**result, "step_images_per_second": speed})
    assert sentence.startswith(f"The {slower} is the bottleneck")
    assert f"so {speed / 500:.2g} cores keep it busy" in sentence and "a core feeds 500 images/s" in sentence


def test_stages_do_the_same_work_both_ways() -> None:
    stages = Stages(48)
    stages.whole_reference(3)
    expected = stages.out.astype(int)
    stages.whole_fast(3)
    assert 0 < np.abs(expected - stages.out).mean() < 1.7
    assert stages.published(stages.images[0]).shape == (3, 48, 48)

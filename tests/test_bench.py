"""The benchmark runs and tells what it says; nothing is timed here."""

import json
from typing import Any

import pytest
import torch

from mgd_ssl.bench.photographs import photograph
from mgd_ssl.bench.views import InMemory, published_transforms
from mgd_ssl.cli import main
from mgd_ssl.commands.bench import verdict


def test_bench_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--student thin_resnet10 --teacher thin_resnet14 --image-size 48 --batch-size 4 --queue-size 64"
    assert main(["bench", *flags.split(), "--rounds", "1", "--warmup", "1"]) == 0
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    assert "thin_resnet14 -> thin_resnet10" in " ".join(printed.split())
    assert result["batch_size"] == 4
    assert min(result[key] for key in ("step_images_per_second", "bare_images_per_second", "step_over_bare")) > 0
    assert min(result[f"{name}_peak_mb"] for name in ("bare", "step", "published")) > 0
    values = 16 * 24**2 + 32 * 12**2 + 64 * 6**2 + 128 * 3**2  # of an image's student maps; the teacher's are 4 times
    assert result["distillation_mb"] == round((4 + 2) * 4 * 4 * values / 1e6, 1)
    assert {"distillation_over_floor", "matching_over_forward", "step_over_published"} <= result.keys()
    sentence = " ".join(printed.split())
    assert "is the bottleneck: the step takes" in sentence and "through the cpu backend" in sentence
    assert_views_are_measured(result)


def assert_views_are_measured(result: dict[str, Any]) -> None:
    stages = {"decode", "crop and resize", "colours", "blur"}
    assert stages | {"whole, cpu", "whole, device", "published, cpu", "published, device"} == result["stages"].keys()
    assert all(min(cost["reference"], cost["fast"], cost["ratio"]) > 0 for cost in result["stages"].values())
    assert {"handover_us", "handover_fresh_memory_us"} <= result.keys() and result["cores"] >= 1


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


def test_the_published_transforms_end_in_normalised_floats() -> None:
    views = [published_transforms(48)(photograph(0)) for _ in range(8)]
    assert all(view.shape == (3, 48, 48) and view.dtype == torch.float32 for view in views)
    assert not torch.equal(views[0], views[1])
    assert torch.stack(views).min() < 0 < torch.stack(views).max()


def test_files_in_memory_are_those_given() -> None:
    images = InMemory([b"one", b"two"])
    assert len(images) == 2 and [images.read(i) for i in range(2)] == [b"one", b"two"]

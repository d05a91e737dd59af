"""The benchmark runs and tells what it says; nothing is timed here."""

import json

import pytest

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

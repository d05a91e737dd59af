"""The benchmarks run and tell what they say; nothing is timed here but by a clock of ours."""

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import benchmarks.parts
import benchmarks.published
from benchmarks.published import published_transforms
from mgd_ssl.bench.memory import in_process
from mgd_ssl.bench.photographs import photograph
from mgd_ssl.bench.tables import brief
from mgd_ssl.bench.timing import Times, compared, interleaved, timed
from mgd_ssl.bench.views import InMemory
from mgd_ssl.cli import main
from mgd_ssl.commands.bench import verdict

NETWORKS = ["--student", "thin_resnet10", "--teacher", "thin_resnet14"]
SIZES = [*NETWORKS, "--image-size", "48", "--batch-size", "4", "--rounds", "1", "--warmup", "1"]


class FakeClock:
    """A clock that goes on only while somebody works."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float) -> Callable[[], str]:
        """Takes so long at its first call, its second, ..., and again from the first on."""
        number = 0

        def call() -> str:
            nonlocal number
            self.now += seconds[number % len(seconds)]
            self.calls.append(name)
            number += 1
            return name

        return call


def test_a_call_is_timed_and_gives_what_it_returns() -> None:
    clock = FakeClock()
    assert timed(clock.work("a", 2.5), clock) == (2.5, "a")
    assert timed(partial(timed, clock.work("b", 0.5), clock), clock) == (0.5, (0.5, "b"))


def test_calls_are_compared_round_by_round_after_a_warm_up() -> None:
    clock = FakeClock()
    work = {"slow": clock.work("slow", 50, 40, 4, 6, 9), "fast": clock.work("fast", 7, 8, 1, 3, 9)}
    times = compared(work, rounds=3, warmup=2, clock=clock)
    assert clock.calls == ["slow", "fast"] * 5
    assert times.seconds == {"slow": [4, 6, 9], "fast": [1, 3, 9]}
    assert (times.median("slow"), times.median("fast")) == (6, 3)
    assert times.ratios("slow", "fast") == [4, 2, 1]


def test_the_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    times = Times({"a": [1.0, 10.0, 9.0], "b": [1.0, 2.0, 9.0]})
    assert times.ratio("a", "b") == 1  # of 1, 5 and 1; that of the medians would be 4.5


def test_short_calls_are_repeated_between_two_looks_at_the_clock() -> None:
    clock = FakeClock()
    times = compared({"a": clock.work("a", 1, 3), "b": clock.work("b", 5)}, 2, 1, clock, repeats=4)
    assert clock.calls == (["a"] * 4 + ["b"] * 4) * 3
    assert times.seconds == {"a": [2, 2], "b": [5, 5]}


def test_interleaved_measurements_keep_their_order_and_values() -> None:
    counts = {1: iter("abc"), 2: iter("xyz")}
    assert interleaved({key: partial(next, values) for key, values in counts.items()}, 2) == {
        1: ["b", "c"],
        2: ["y", "z"],
    }
    assert interleaved({"none": partial(next, iter("a"))}, 1, warmup=0) == {"none": ["a"]}


def test_a_process_of_its_own_returns_and_raises() -> None:
    assert in_process("spawn", os.getpid) != os.getpid()
    with pytest.raises(ZeroDivisionError):
        in_process("fork", divmod, 1, 0)


@pytest.mark.parametrize(
    ("value", "shown"), [(3, "3"), ("cpu", "cpu"), (0.03, "0.03"), (12345.67, "12346"), (43.721, "43.72")]
)
def test_numbers_are_brief(value: object, shown: str) -> None:
    assert brief(value) == shown


def last_line(capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    """All that was printed, its lines joined, and the JSON at its end."""
    printed = capsys.readouterr().out
    return " ".join(printed.split()), json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("task", ["pretrain", "classify"])
def test_bench_prints_a_table_and_json(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--task", task, *SIZES, "--queue-size", "64"]) == 0
    printed, result = last_line(capsys)
    assert "thin_resnet14 -> thin_resnet10" in printed
    assert result["batch_size"] == 4
    assert min(result[key] for key in ("step_images_per_second", "bare_images_per_second", "step_over_bare")) > 0
    assert min(result["bare_peak_mb"], result["step_peak_mb"]) > result["libraries_mb"] > 0
    if task == "classify":  # its crops are not MoCo's views
        assert "bottleneck" not in printed
        return
    assert "is the bottleneck: the step takes" in printed and "through the cpu backend" in printed
    assert_views_are_measured(result)


def test_parts_against_what_they_cannot_do_without(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.parts.main([*SIZES, "--queue-size", "64", "--small-queue", "8"]) == 0
    printed, result = last_line(capsys)
    assert "thin_resnet14 -> thin_resnet10" in printed
    values = 16 * 24**2 + 32 * 12**2 + 64 * 6**2 + 128 * 3**2  # of an image's student maps; the teacher's are 4 times
    assert result["distillation_mb"] == round((4 + 9) * 4 * 4 * values / 1e6, 1)
    assert {"distillation_over_floor", "matching_over_forward", "step_ms_added_by_queue_64_over_8"} <= result.keys()


def test_the_published_programs_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.published.main([*SIZES, "--queue-size", "64"]) == 0
    _, result = last_line(capsys)
    assert min(result[f"{name}_peak_mb"] for name in ("step", "published")) > 0
    speeds = [result[f"{name}_images_per_second"] for name in ("step", "published")]
    assert result["step_over_published"] == pytest.approx(speeds[0] / speeds[1], rel=0.01)  # of a single round
    assert result["stages"].keys() == {"cpu", "device"}
    assert_costs(result["stages"])


def assert_views_are_measured(result: dict[str, Any]) -> None:
    stages = {"decode", "crop and resize", "colours", "blur", "whole, cpu", "whole, device"}
    assert stages == result["stages"].keys()
    assert_costs(result["stages"])
    assert {"handover_us", "handover_fresh_memory_us"} <= result.keys() and result["cores"] >= 1


def assert_costs(stages: dict[str, dict[str, float]]) -> None:
    assert all(min(cost["reference"], cost["fast"], cost["ratio"]) > 0 for cost in stages.values())


def test_bench_of_the_views_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "views", "--image-size", "32", "--rounds", "1", "--runtime.device", "cpu"]) == 0
    printed, result = last_line(capsys)
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

"""What `mgd-ssl bench` measures of this machine: step, parts, views."""

import os
import statistics
import time
from dataclasses import asdict
from typing import Any

import torch

from mgd_ssl.bench.config import BenchConfig
from mgd_ssl.bench.parts import distillation, matching, order_cost, queue_cost
from mgd_ssl.bench.step import bare_networks, published_step, training_step, view_rows
from mgd_ssl.bench.timing import timed
from mgd_ssl.bench.views import handover, measure_views
from mgd_ssl.data.samples import chosen_backend
from mgd_ssl.data.views_device import finish_views
from mgd_ssl.mgd.matching import assign
from mgd_ssl.run.runtime import Runtime, process
from moco import ViewPolicy


def views(config: BenchConfig) -> dict[str, Any]:
    """Stages, hand-over, and on a GPU what it makes of its share."""
    ring, fresh = handover(config.image_size, config.rounds)
    result: dict[str, Any] = {
        "stages": {name: asdict(cost) for name, cost in measure_views(config.image_size, config.rounds).items()},
        "handover_us": ring,
        "handover_fresh_memory_us": fresh,
        "cores": len(os.sched_getaffinity(0)),
    }
    with process(config.runtime) as runtime:
        result["backend"] = chosen_backend("auto", runtime.device)
        if result["backend"] == "device":
            result["finished_images_per_second"] = finished_per_second(config, runtime)
    return result


def finished_per_second(config: BenchConfig, runtime: Runtime) -> float:
    """Images/s whose two views the device finishes, when it does nothing else."""
    rows = view_rows(config.batch_size)[0].to(runtime.device)
    size = (config.batch_size, config.image_size, config.image_size, 3)
    pixels = torch.randint(256, size, dtype=torch.uint8, device=runtime.device)
    finish = torch.compile(finish_views)

    def both() -> None:
        for _ in range(2):
            finish(pixels, rows, ViewPolicy().max_sigma)

    seconds = [timed(both, runtime) for _ in range(config.warmup + config.rounds)][config.warmup :]
    return round(config.batch_size / statistics.median(seconds))


def measure(config: BenchConfig) -> dict[str, Any]:
    """Medians over interleaved rounds; ratios are the medians of the rounds' own ratios."""
    with process(config.runtime) as runtime:
        work = [training_step(config, runtime), bare_networks(config, runtime), published_step(config, runtime)]
        times: list[list[float]] = []
        for i in range(config.warmup + config.rounds):
            seconds = [timed(one, runtime) for one in work]
            if i >= config.warmup:
                times.append(seconds)
        speeds = [round(config.batch_size / statistics.median(column), 2) for column in zip(*times, strict=True)]
        return {
            "threads": torch.get_num_threads(),
            "device": runtime.device.type,
            **dict(zip((f"{name}_images_per_second" for name in ("step", "bare", "published")), speeds, strict=True)),
            "step_over_bare": round(statistics.median(bare / step for step, bare, _ in times), 3),
            "step_over_published": round(statistics.median(published / step for step, _, published in times), 3),
            "assignment_seconds": round(assignment_seconds(), 2),
        }


def parts(config: BenchConfig) -> dict[str, Any]:
    """Parts of the step against what they cannot do without."""
    sizes = config.student, config.teacher, config.batch_size, config.image_size, config.rounds
    with process(config.runtime) as runtime:
        return {
            **distillation(*sizes, config.runtime.compile, runtime),
            **queue_cost(config, runtime),
            **matching(*sizes, runtime),
            **order_cost(config.batch_size),
        }


def assignment_seconds() -> float:
    """Time to solve the four stages of ResNet-50 -> ResNet-18 (256, 512, 1024, 2048 teacher channels)."""
    generator = torch.Generator().manual_seed(0)
    costs = [2 * torch.rand(width, 4 * width, generator=generator) for width in (64, 128, 256, 512)]
    started = time.perf_counter()
    for cost in costs:
        assign(cost)
    return time.perf_counter() - started

"""What `mgd-ssl bench` measures of this machine: step, memory, views."""

from dataclasses import asdict
from typing import Any

import torch

from mgd_ssl.bench.classification import bare_classifiers, classification_step
from mgd_ssl.bench.config import BenchConfig, StepConfig
from mgd_ssl.bench.handover import handover
from mgd_ssl.bench.memory import peak_memory
from mgd_ssl.bench.step import bare_networks, training_step, view_rows
from mgd_ssl.bench.timing import clock_of, compared, repeats_on, timed
from mgd_ssl.bench.views import Stages, stage_costs
from mgd_ssl.data.samples import chosen_backend
from mgd_ssl.data.upload import Upload
from mgd_ssl.mgd.matching import assign
from mgd_ssl.run.runtime import Runtime, cores_here, process
from moco import ViewPolicy

WORK = {"pretrain": (training_step, bare_networks), "classify": (classification_step, bare_classifiers)}


def views(config: BenchConfig) -> dict[str, Any]:
    """Stages, hand-over, and on a GPU what it makes of its share."""
    ring, fresh = handover(config.image_size, config.rounds)
    costs = stage_costs(Stages(config.image_size).all(), config.rounds)
    result: dict[str, Any] = {
        "stages": {name: asdict(cost) for name, cost in costs.items()},
        "handover_us": ring,
        "handover_fresh_memory_us": fresh,
        "cores": cores_here(),
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
    upload = Upload(runtime, ViewPolicy().max_sigma)

    def both() -> None:
        for _ in range(2):
            upload.finished(pixels, rows)

    times = compared({"both": both}, config.rounds, config.warmup, clock_of(runtime.device), repeats_on(runtime.device))
    return round(config.batch_size / times.median("both"))


def measure(config: StepConfig) -> dict[str, Any]:
    """Medians over interleaved rounds; ratios are the medians of the rounds' own ratios."""
    with process(config.runtime) as runtime:
        step, bare = WORK[config.task]
        work = {"step": step(config, runtime), "bare": bare(config, runtime)}
        times = compared(work, config.rounds, config.warmup, clock_of(runtime.device), repeats_on(runtime.device))
        return {
            "threads": torch.get_num_threads(),
            "device": runtime.device.type,
            **{f"{name}_images_per_second": round(config.batch_size / times.median(name), 2) for name in work},
            "step_over_bare": round(times.ratio("bare", "step"), 3),
            "assignment_seconds": round(timed(solve_assignments)[0], 2),
        }


def memory(config: StepConfig) -> dict[str, float]:
    """Peak memory of the step beside that of the bare networks, with and without what the libraries take."""
    step, bare = (peak_memory(make, config) for make in WORK[config.task])
    libraries = min(step.libraries, bare.libraries)
    return {
        "step_peak_mb": step.whole,
        "bare_peak_mb": bare.whole,
        "memory_ratio": round(step.whole / bare.whole, 3),
        "libraries_mb": libraries,
        "memory_ratio_without_libraries": round((step.whole - libraries) / (bare.whole - libraries), 3),
    }


def solve_assignments() -> None:
    """The four stages of ResNet-50 -> ResNet-18 (256, 512, 1024, 2048 teacher channels)."""
    generator = torch.Generator().manual_seed(0)
    for width in (64, 128, 256, 512):
        assign(2 * torch.rand(width, 4 * width, generator=generator))

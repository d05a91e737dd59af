"""`mgd-ssl bench`: the training step against the bare networks, the views stage by stage, and what limits a run."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mgd_ssl.bench_views import handover, measure_views
from mgd_ssl.checkpoint import Checkpoints
from mgd_ssl.config import DataConfig, MoCoConfig, OptimConfig, PretrainConfig, RuntimeConfig, Settings, parse
from mgd_ssl.data import PretrainBatch, chosen_backend
from mgd_ssl.encoders import build_backbone, build_encoder
from mgd_ssl.engine import Trainer
from mgd_ssl.images import ImageList
from mgd_ssl.matching import assign
from mgd_ssl.pretrain import build_method
from mgd_ssl.runtime import Runtime, process
from mgd_ssl.skipped import SkippedFiles
from mgd_ssl.teacher import Teacher
from moco import ViewPolicy, draw_view
from moco.augment_device import finish_views


class BenchConfig(Settings):
    """Measure a training step, the bare networks in it, the matching solver, and what the views cost a core."""

    student: str = "resnet18"
    """Architecture that is trained."""
    teacher: str = "resnet50"
    """Architecture that teaches; its weights are random here."""
    image_size: int = Field(64, ge=32)
    """Edge of an image in pixels."""
    batch_size: int = Field(32, ge=2)
    """Images in a step."""
    queue_size: int = Field(65536, ge=2)
    """Negative keys; a multiple of the batch size."""
    rounds: int = Field(10, ge=1)
    """Rounds counted; in each, step and bare networks run one after the other."""
    warmup: int = Field(2, ge=1)
    """Rounds not counted."""
    runtime: RuntimeConfig = RuntimeConfig(threads=1)
    views: bool = True
    """Also measure the views, and say how many cores it takes to feed the step."""
    memory: bool = True
    """Also measure the peak memory of step and bare networks, in processes of their own."""
    only: Literal["views", "step", "bare"] | None = None
    """views: measure nothing else, within a minute. step or bare: run one of the two alone and print its peak memory;
    used by `memory`."""


def main(argv: Sequence[str]) -> int:
    """Print a table, and the same as JSON on the last line."""
    config = parse(BenchConfig, argv, "mgd-ssl bench")
    if config.only in ("step", "bare"):
        print(json.dumps(peak_memory(config)))
        return 0
    result: dict[str, Any] = {}
    console = Console()
    if config.only != "views":
        result |= measure(config)
        if config.memory:
            result |= memory(config)
        console.print(step_table(config, result))
    if config.views or config.only == "views":
        result |= views(config)
        console.print(views_table(config, result))
        console.print(verdict(result), soft_wrap=True)
    print(json.dumps({**config.model_dump(mode="json"), **result}))
    return 0


def step_table(config: BenchConfig, result: dict[str, Any]) -> Table:
    """The numbers of the step."""
    table = Table(title=f"{config.teacher} -> {config.student}, {config.image_size} px, batch {config.batch_size}")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in result.items():
        table.add_row(name.replace("_", " "), str(value))
    return table


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
        result["backend"] = chosen_backend(DataConfig(), runtime.device)
        if result["backend"] == "device":
            result["finished_images_per_second"] = finished_per_second(config, runtime)
    return result


def views_table(config: BenchConfig, result: dict[str, Any]) -> Table:
    """The numbers of the views."""
    title = f"both views of an image of 500 x 375, {config.image_size} px, on one core"
    table = Table(title=title, caption="us of CPU time; the ratio is the median of the rounds', and its spread")
    for column in ("stage", "reference us", "fast us", "ratio", "fast images/s"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, cost in result["stages"].items():
        ratio = f"{cost['ratio']} ({cost['spread']})"
        table.add_row(name, str(cost["reference"]), str(cost["fast"]), ratio, f"{1e6 / cost['fast']:.0f}")
    table.add_row("hand-over", str(result["handover_fresh_memory_us"]), str(result["handover_us"]), "", "")
    return table


def verdict(result: dict[str, Any]) -> str:
    """What limits a training on this machine, and how many cores keep the step busy."""
    backend, cores = result["backend"], result["cores"]
    cost = result["stages"][f"whole, {backend}"]["fast"] + result["handover_us"]
    fed = f"a core feeds {1e6 / cost:.0f} images/s through the {backend} backend"
    if "step_images_per_second" not in result:
        return f"{fed}; this machine has {cores}."
    speed = result["step_images_per_second"]
    needed = speed * cost / 1e6
    slower = "data" if needed > cores else "step"
    return (
        f"The {slower} is the bottleneck: the step takes {speed} images/s on the {result['device']}, and {fed}, so "
        f"{needed:.2g} cores keep it busy; this machine has {cores}."
    )


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


def view_rows(num_images: int) -> Tensor:
    """Parameters of both views of a batch, [2, N, 15]."""
    return torch.tensor(
        [
            [draw_view(ViewPolicy(), 500, 375, seed=0, epoch=0, index=i, view=v) for i in range(num_images)]
            for v in range(2)
        ]
    )


def measure(config: BenchConfig) -> dict[str, Any]:
    """Medians over interleaved rounds; the ratio is the median of the rounds' own ratios."""
    with process(config.runtime) as runtime:
        step, bare = training_step(config, runtime), bare_networks(config, runtime)
        times: list[tuple[float, float]] = []
        for i in range(config.warmup + config.rounds):
            seconds = timed(step, runtime), timed(bare, runtime)
            if i >= config.warmup:
                times.append(seconds)
        step_time, bare_time = (statistics.median(column) for column in zip(*times, strict=True))
        return {
            "threads": torch.get_num_threads(),
            "device": runtime.device.type,
            "step_images_per_second": round(config.batch_size / step_time, 2),
            "bare_images_per_second": round(config.batch_size / bare_time, 2),
            "step_over_bare": round(statistics.median(bare / step for step, bare in times), 3),
            "assignment_seconds": round(assignment_seconds(), 2),
        }


def timed(work: Callable[[], None], runtime: Runtime) -> float:
    """Seconds of one call, the device's work included."""
    started = time.perf_counter()
    work()
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def training_step(config: BenchConfig, runtime: Runtime) -> Callable[[], None]:
    """A step of a run, from the uint8 batch to the updated queue."""
    pretrain_config = PretrainConfig(
        student=config.student,
        data=DataConfig(image_size=config.image_size),
        moco=MoCoConfig(queue_size=config.queue_size),
        optim=OptimConfig(batch_size=config.batch_size, epochs=1),
        runtime=config.runtime,
    )
    torch.manual_seed(0)
    teacher = Teacher(build_backbone(config.teacher))
    method = build_method(pretrain_config, teacher)
    teacher.fold()
    assert method.mgd is not None
    channels = zip(method.mgd.student_channels, method.mgd.teacher_channels, strict=True)
    for assignment, (c_s, c_t) in zip(method.mgd.assignments, channels, strict=True):
        assignment.copy_(torch.randperm(c_t)[: assignment.numel()].view(c_s, -1))
    method.mgd.matched = True
    for module in (method, teacher):
        module.to(runtime.device).to(memory_format=runtime.memory_format)
    with tempfile.TemporaryDirectory() as folder:
        images = ImageList(Path(folder), [str(i) for i in range(config.batch_size)])
        skipped = SkippedFiles(Path(folder) / "none", images, 1)
        trainer = Trainer(pretrain_config, method, teacher, images, runtime, None, Checkpoints(Path(folder)), skipped)
    trainer.wrap()
    method.train()
    size = (config.batch_size, config.image_size, config.image_size, 3)
    im_q, im_k = (torch.randint(256, size, dtype=torch.uint8) for _ in range(2))
    batch = PretrainBatch(im_q, im_k, [])
    if chosen_backend(DataConfig(), runtime.device) == "device":  # finishing the views is a part of the step
        rows = view_rows(config.batch_size)
        batch = PretrainBatch(im_q.pin_memory(), im_k.pin_memory(), [], rows.pin_memory())
    return lambda: _discard(trainer.train_step(batch))


def bare_networks(config: BenchConfig, runtime: Runtime) -> Callable[[], None]:
    """Teacher forward, key forward, query forward and backward, and nothing around them."""
    teacher = build_backbone(config.teacher).eval()
    query, key = (build_encoder(config.student, 128) for _ in range(2))
    for network in (teacher, query, key):
        network.to(runtime.device).to(memory_format=runtime.memory_format)
        if config.runtime.compile:
            network.compile()
    size = (config.batch_size, 3, config.image_size, config.image_size)
    im_q, im_k = (torch.randn(size, device=runtime.device).to(memory_format=runtime.memory_format) for _ in range(2))

    def bare() -> None:
        with runtime.autocast():
            with torch.no_grad():
                teacher(im_q)
                key(im_k)
            loss = query(im_q).float().sum()
        loss.backward()
        query.zero_grad(set_to_none=True)

    return bare


def _discard(result: object) -> None:
    """Turn a step into a callable without a result."""


def assignment_seconds() -> float:
    """Time to solve the four stages of ResNet-50 -> ResNet-18 (256, 512, 1024, 2048 teacher channels)."""
    generator = torch.Generator().manual_seed(0)
    costs = [2 * torch.rand(width, 4 * width, generator=generator) for width in (64, 128, 256, 512)]
    started = time.perf_counter()
    for cost in costs:
        assign(cost)
    return time.perf_counter() - started


def memory(config: BenchConfig) -> dict[str, Any]:
    """Peak memory of the step beside that of the bare networks, with and without what the libraries take."""
    step, bare = (_in_own_process(config, name) for name in ("step", "bare"))
    libraries = min(step["libraries_mb"], bare["libraries_mb"])
    return {
        "step_peak_mb": step["peak_mb"],
        "bare_peak_mb": bare["peak_mb"],
        "memory_ratio": round(step["peak_mb"] / bare["peak_mb"], 3),
        "libraries_mb": libraries,
        "memory_ratio_without_libraries": round((step["peak_mb"] - libraries) / (bare["peak_mb"] - libraries), 3),
    }


def peak_memory(config: BenchConfig) -> dict[str, float]:
    """Most memory held while one of the two runs, in MB: of the device, or of this whole process on a CPU."""
    before = _peak_resident_mb()
    with process(config.runtime) as runtime:
        work = (bare_networks if config.only == "bare" else training_step)(config, runtime)
        for _ in range(config.warmup):
            work()
        if runtime.device.type == "cuda":
            return {"peak_mb": round(torch.cuda.max_memory_allocated() / 2**20), "libraries_mb": 0}
        return {"peak_mb": round(_peak_resident_mb()), "libraries_mb": round(before)}


def _peak_resident_mb() -> float:
    """VmHWM of this process; ru_maxrss would start from its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def _in_own_process(config: BenchConfig, name: str) -> dict[str, float]:
    flags = [
        f"--{flag}={getattr(config, flag.replace('-', '_'))}"
        for flag in ("student", "teacher", "image-size", "batch-size", "queue-size")
    ]
    runtime = config.runtime
    flags += [
        f"--runtime.device={runtime.device}",
        f"--runtime.precision={runtime.precision}",
        f"--runtime.threads={runtime.threads}",
    ]
    command = [sys.executable, "-m", "mgd_ssl.cli", "bench", "--only", name, *flags]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return result

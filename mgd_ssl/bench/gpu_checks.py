"""What has to hold on a GPU, checked there in under ten minutes: `mgd-ssl bench --only gpu`.

Each check gives numbers and says whether they pass; one that raises has failed, and the others go on.
"""

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from mgd_ssl.bench.config import StepConfig
from mgd_ssl.bench.gpu_teacher import fused_against_plain
from mgd_ssl.bench.step import Step, bare_networks, view_rows
from mgd_ssl.bench.timing import Work, clock_of, compared
from mgd_ssl.config import RuntimeConfig
from mgd_ssl.data.ring import view_batches
from mgd_ssl.data.space import Space
from mgd_ssl.data.views_device import Finishing, finish_views
from mgd_ssl.evaluation.features import Features
from mgd_ssl.evaluation.knn import knn_accuracy
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.run.runtime import Runtime

CPU = Runtime(torch.device("cpu"), None, torch.channels_last, 1)
SMALL = StepConfig(image_size=64, batch_size=16, queue_size=256, runtime=RuntimeConfig(precision="float32"))
STAGES = [(64, 56), (128, 28), (256, 14), (512, 7)]  # channels and edge of ResNet-18's maps at 224 pixels

Numbers = dict[str, Any]  # `passed` among them
Check = Callable[[Runtime], Numbers]


def run_checks(runtime: Runtime, checks: Mapping[str, Check]) -> dict[str, Numbers]:
    """Numbers of every check by its name, with its seconds."""
    found = {}
    for name, check in checks.items():
        started = time.monotonic()
        try:
            numbers = check(runtime)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            numbers = {"passed": False, "error": f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"}
        found[name] = {**numbers, "seconds": round(time.monotonic() - started, 1)}
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def seconds(work: Work, runtime: Runtime, repeats: int = 10) -> float:
    """Of a call, the median of five rounds."""
    return compared({"work": work}, 5, 2, clock_of(runtime.device), repeats).median("work")


def ceilings(runtime: Runtime) -> Numbers:
    """1. What the device can do: a copy, a product in bfloat16, an upload from pinned memory."""
    source = torch.zeros(2**30, dtype=torch.uint8, device=runtime.device)
    target = torch.empty_like(source)
    a = torch.randn(8192, 8192, device=runtime.device, dtype=torch.bfloat16)
    host = torch.zeros(2**28, dtype=torch.uint8).pin_memory()
    return {
        "name": torch.cuda.get_device_name(runtime.device),
        "copy_tb_per_s": round(2 * source.nbytes / seconds(lambda: target.copy_(source), runtime) / 1e12, 2),
        "product_tflop_per_s": round(2 * 8192**3 / seconds(lambda: a @ a, runtime) / 1e12),
        "upload_gb_per_s": round(
            host.nbytes / seconds(lambda: host.to(runtime.device, non_blocking=True), runtime) / 1e9, 1
        ),
        "passed": True,
    }


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def no_synchronisation(runtime: Runtime) -> Numbers:
    """2. Three warm steps, then three more in which nothing may wait, eager and compiled."""
    for compiling in (False, True):
        half = replace(runtime, precision=torch.bfloat16)
        settings = RuntimeConfig(precision="bfloat16", compile=compiling)
        step = Step(SMALL.model_copy(update={"runtime": settings}), half)
        for _ in range(3):
            step()
        with no_waiting():
            for _ in range(3):
                step()
        torch._dynamo.reset()
    return {"passed": True}


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute one over the largest absolute value."""
    found, expected = (each.detach().double().cpu() for each in (found, expected))
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def twins(runtime: Runtime) -> Numbers:
    """3. The same three steps on GPU and CPU, without TF32."""
    steps = [Step(SMALL, replace(where, precision=None)) for where in (runtime, CPU)]
    for step in steps:
        step.batch = steps[1].batch
    found: Numbers = {}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for number in range(3):
            ours, theirs = (step() for step in steps)
            found[f"loss_{number + 1}"] = difference(ours.total, theirs.total)
    found["queue"] = difference(*(step.task.module.moco.queue for step in steps))
    found["passed"] = found["loss_1"] < 1e-4 and found["loss_3"] < 1e-3 and found["queue"] < 1e-3
    return found


def views(runtime: Runtime) -> Numbers:
    """3. Finished views on GPU (compiled) and CPU: 99.9 % of the bytes are equal."""
    pixels = torch.randint(256, (16, 64, 64, 3), dtype=torch.uint8)
    rows = view_rows(16)[0]
    finish = Finishing(2.0, compiled=runtime.device.type == "cuda")
    found = finish(pixels.to(runtime.device), rows.to(runtime.device)).cpu()
    equal = float((found == finish_views(pixels, rows, 2.0)).double().mean())
    return {"equal": equal, "passed": equal >= 0.999}


def against_bare(runtime: Runtime) -> Numbers:
    """4. A step against the bare networks in it, batch 256 and 32, compiled, in bfloat16."""
    found: Numbers = {"passed": True}
    for batch in (256, 32):
        settings = RuntimeConfig(precision="bfloat16", compile=True)
        config = StepConfig(image_size=224, batch_size=batch, runtime=settings)
        half = replace(runtime, precision=torch.bfloat16)
        torch.cuda.reset_peak_memory_stats(runtime.device)
        work: dict[str, Work] = {"step": Step(config, half), "bare": bare_networks(config, half)}
        times = compared(work, 5, 2, clock_of(runtime.device), 10)
        ratio = times.ratio("step", "bare")
        found |= {
            f"step_ms_{batch}": round(1000 * times.median("step"), 2),
            f"step_over_bare_time_{batch}": round(ratio, 3),
            f"images_per_second_{batch}": round(batch / times.median("step")),
            f"peak_gb_{batch}": round(torch.cuda.max_memory_allocated(runtime.device) / 1e9, 2),
        }
        found["passed"] &= ratio <= 1.15
        torch._dynamo.reset()
    return found


def loss_bytes(runtime: Runtime) -> Numbers:
    """5. The compiled loss against the bytes it cannot do without, and against float64."""
    batch, half = (256 if runtime.device.type == "cuda" else 2), torch.bfloat16

    def maps(times: int) -> list[Tensor]:
        made = (torch.randn(batch, times * c, edge, edge, device=runtime.device, dtype=half) for c, edge in STAGES)
        return [each.to(memory_format=torch.channels_last) for each in made]

    mgd = MGD([c for c, _ in STAGES], [4 * c for c, _ in STAGES]).to(runtime.device).train()
    mgd.set_assignments([torch.randperm(4 * c).view(c, 4) for c, _ in STAGES])
    student, teacher = [each.requires_grad_() for each in maps(1)], maps(4)
    exact = mgd.double()([each.detach().double() for each in student], [each.double() for each in teacher])
    mgd.float().compile(dynamic=False)
    mgd(student, teacher).backward()
    error = difference(mgd(student, teacher), exact)
    least = sum(each.nbytes for each in teacher) + 9 * sum(each.nbytes for each in student)
    source = torch.zeros(least // 2, dtype=torch.uint8, device=runtime.device)
    target = torch.empty_like(source)
    work: dict[str, Work] = {"loss": lambda: mgd(student, teacher).backward(), "floor": lambda: target.copy_(source)}
    ratio = compared(work, 5, 2, clock_of(runtime.device), 10).ratio("loss", "floor")
    last = all(each.grad.is_contiguous(memory_format=torch.channels_last) for each in student if each.grad is not None)
    passed = ratio <= 1.3 and last and error < 1e-3
    return {"over_floor": round(ratio, 2), "channels_last": last, "difference_to_float64": error, "passed": passed}


class Counted:
    """A data set whose batches hold their own number."""

    def space(self, num_images: int) -> Space:
        """Memory for a batch."""
        return Space(torch.empty(1, num_images, 64, 64, 3, dtype=torch.uint8), torch.empty(1, num_images))

    def fill(self, keys: Any, space: Space) -> list[Any]:
        """Write the number of the batch, the epoch of its first key."""
        space.views.fill_(keys[0][0] % 251)
        return []

    def batch(self, space: Space, unreadable: list[Any]) -> Tensor:
        """What was written."""
        return space.views[0]


def ring(runtime: Runtime) -> Numbers:
    """6. Three hundred batches through the ring with the GPU behind: none is overwritten before it was copied."""
    numbers = range(300)
    edge = 2048 if runtime.device.type == "cuda" else 64  # a CPU is never behind: it waits for the product
    busy, found = torch.randn(edge, edge, device=runtime.device), []
    with view_batches(Counted(), [[(n, 0)] * 64 for n in numbers], 64, 2, runtime.device) as batches:
        for batch in batches:
            busy = (busy @ busy).clamp(-1, 1)
            found.append(batch.to(runtime.device, non_blocking=True).double().mean())
    wrong = sum(round(float(mean)) != n % 251 for n, mean in zip(numbers, found, strict=True))
    return {"wrong": wrong, "passed": wrong == 0}


def resume(runtime: Runtime) -> Numbers:
    """7. State goes from GPU to GPU, CPU to GPU and GPU to CPU, also in float16, and a step follows."""
    fused = []
    for dtype in (None, torch.float16):
        gpu, cpu = (replace(each, precision=dtype) for each in (runtime, CPU))
        for saved, loaded in ((gpu, gpu), (cpu, gpu), (gpu, cpu)):
            first, second = Step(SMALL, saved), Step(SMALL, loaded)
            first()
            second.update.load(first.update.state())
            second()
            (group,) = second.update.optimizer.param_groups
            fused.append(bool(group["fused"]) == (loaded.device.type == "cuda"))
    return {"fused_as_the_device_wants": fused, "passed": all(fused)}


def shared_gpu(runtime: Runtime) -> Numbers:
    """8. Two processes on one GPU are told so within a minute."""
    program = (
        "from mgd_ssl.config import RuntimeConfig; from mgd_ssl.run.runtime import process\n"
        "with process(RuntimeConfig()): pass"
    )
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617"}
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True,
            env=os.environ | place | {"RANK": str(i), "LOCAL_RANK": str(i), "CUDA_VISIBLE_DEVICES": "0"},
        )
        for i in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=120)[1] for process in processes]
    took = time.monotonic() - started
    return {"took": round(took, 1), "passed": took < 60 and all("share one GPU" in each for each in told)}


def knn(runtime: Runtime) -> Numbers:
    """9. k-NN on GPU and CPU."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(50, 64))

    def features(count: int) -> Features:
        labels = generator.integers(0, 50, count)
        values = centres[labels] + 3 * generator.normal(size=(count, 64))
        return Features((values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32), labels)

    voting, classified = features(5000), features(1000)
    ours, theirs = (knn_accuracy(voting, classified, 20, 0.07, where.device) for where in (runtime, CPU))
    return {"gpu_top1": ours.top1, "cpu_top1": theirs.top1, "passed": abs(ours.top1 - theirs.top1) <= 0.2}


class Refusing:
    """In place of CUDA's functions: nothing can be pinned, and the error stays, as an impossible call leaves it."""

    def __init__(self, cudart: Any) -> None:
        self.cudart = cudart

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:
        """Ask for what cannot be."""
        return int(self.cudart.cudaHostRegister(0, 0, 0)) or 1


def failed_pinning(runtime: Runtime) -> Numbers:
    """10. Where the ring cannot be pinned a step still runs."""
    refusing = Refusing(torch.cuda.cudart())
    with (
        patch.object(torch.cuda, "cudart", lambda: refusing),
        view_batches(Counted(), [[(n, 0)] * 4 for n in range(4)], 4, 0, runtime.device) as batches,
    ):
        found = [float(batch.to(runtime.device).double().mean()) for batch in batches]
    Step(SMALL, runtime)()
    return {"passed": found == [0.0, 1.0, 2.0, 3.0]}


CHECKS: dict[str, Check] = {
    "ceilings": ceilings, "no synchronisation": no_synchronisation, "twins": twins, "views": views,
    "step against bare networks": against_bare, "loss against its bytes": loss_bytes, "ring": ring, "resume": resume,
    "two processes on one GPU": shared_gpu, "k-NN": knn, "failed pinning": failed_pinning,
    "fused teacher against plain": fused_against_plain,
}  # fmt: skip

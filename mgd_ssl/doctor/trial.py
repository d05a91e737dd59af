"""A few real steps of a run, from its own images through its own loader, in a folder that is thrown away."""

import statistics
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgd_ssl.bench.timing import clock_of
from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.images import Images
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.moco import GuidedMoCo
from mgd_ssl.tasks.pretraining import Pretraining, update_of

LEFT_OUT = 2  # first steps, in which libraries make up their minds
LEAST_FREE = 0.1  # share of the memory that a batch leaves alone


class Setup(NamedTuple):
    """What a run trains with, on the device."""

    config: PretrainConfig
    images: Images
    method: GuidedMoCo
    teacher: Teacher | None
    runtime: Runtime


def take_steps(setup: Setup, steps: int) -> dict[str, Any]:
    """Speed, waiting for data and memory of some steps.

    Returns:
        Medians over the steps after the first two: `step_seconds` without the waiting for data, `wait_seconds`.
    """
    config, images, method, teacher, runtime = setup
    task = Pretraining(config, method, teacher, images, Session(config.out, 1, runtime))
    steps = min(steps, task.total_steps)
    if task.sight.int8:
        task.calibrate()
    if task.mgd is not None:  # any matching costs the same
        task.mgd.set_assignments([torch.randperm(a.numel()).view(a.shape) for a in task.mgd.assignments])
    update, clock = update_of(config, task), clock_of(runtime.device)
    method.train()
    waits, computed, saved = list[float](), list[float](), 0
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)
    with task.batches(0) as batches:
        for number in range(steps):
            started = clock()
            batch = next(batches)
            arrived = clock()
            with Saved(number == 0) as counted:
                task.after_step(update(task.inputs(batch, number), number).carried)
            saved = counted.bytes or saved
            waits.append(arrived - started)
            computed.append(clock() - arrived)
    counted_steps = slice(LEFT_OUT if steps > LEFT_OUT else 0, None)
    wait, step = (statistics.median(each[counted_steps]) for each in (waits, computed))
    mean_wait = statistics.fmean(waits[counted_steps])
    batch_size = config.optim.batch_size
    found = {
        "steps": steps, "step_seconds": step, "wait_seconds": wait, "mean_wait_seconds": mean_wait,
        "images_per_second": batch_size / (step + mean_wait), "data_wait": mean_wait / (step + mean_wait),
        "workers": task.workers, "parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "state_bytes": sum(2 * t.numel() * t.element_size() for t in method.state_dict().values()),
        "look_seconds": look_seconds(task, runtime, min(batch_size, 64)),
        "matching_updates": sum(len(event.steps) for event in task.events if event.name == "matching"),
    }  # fmt: skip
    if runtime.device.type == "cuda":
        found["peak_memory_gb"] = round(torch.cuda.max_memory_allocated(runtime.device) / 2**30, 2)
    return found | {"activation_mb_an_image": round(saved / batch_size / 2**20, 3)}


def look_seconds(task: Pretraining, runtime: Runtime, count: int) -> float:
    """Of an image that student and teacher look at without learning, as in a matching update."""
    size = task.config.data.image_size
    images = torch.zeros(count, 3, size, size, device=runtime.device).contiguous(memory_format=runtime.memory_format)
    task.module.eval()
    clock, seconds = clock_of(runtime.device), list[float]()
    for _ in range(3):
        started = clock()
        with torch.no_grad():
            task.module.student_maps(images)
            if task.teacher is not None:
                task.teacher(images)
        seconds.append(clock() - started)
    return min(seconds) / count


class Saved:
    """Counts the bytes that a forward pass keeps for its backward pass, where it is asked to."""

    def __init__(self, count: bool) -> None:
        self.bytes, self._seen = 0, set[int]()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda x: x) if count else None

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> "Saved":
        if self._hooks is not None:
            self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._hooks is not None:
            self._hooks.__exit__(*error)


def largest_batch(activation_mb: float, free_gb: float | None, state_bytes: int) -> int | None:
    """Images of a batch whose activations fit into the memory that is left, estimated; a power of two."""
    if free_gb is None or activation_mb <= 0:
        return None
    room = (1 - LEAST_FREE) * free_gb * 2**30 - 3 * state_bytes
    images = int(room / (1.25 * activation_mb * 2**20))  # the teacher's maps, copies of the batch
    return 1 << (images.bit_length() - 1) if images >= 2 else None

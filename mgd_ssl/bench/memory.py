"""Peak memory, of work that has a process to itself."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch

from mgd_ssl.bench.config import StepConfig
from mgd_ssl.bench.timing import Work
from mgd_ssl.run.runtime import Runtime, process

T = TypeVar("T")
Make = Callable[[StepConfig, Runtime], Work]  # of a module, so that another process finds it by its name


class Peak(NamedTuple):
    """Most memory held, in MB: of the device, or of the whole process on a CPU."""

    whole: int
    libraries: int  # the part that was held before the work was made


def in_process(start: Literal["spawn", "fork"], function: Callable[..., T], *args: object) -> T:
    """What a function returns, or raises, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context(start)) as pool:
        return pool.submit(function, *args).result()


def peak_memory(make: Make, config: StepConfig) -> Peak:
    """Most memory held while some work is made and done a few times, in a process of its own."""
    return in_process("spawn", _peak_here, make, config)


def _peak_here(make: Make, config: StepConfig) -> Peak:
    before = _peak_resident_mb()
    with process(config.runtime) as runtime:
        work = make(config, runtime)
        for _ in range(config.warmup):
            work()
        if runtime.device.type == "cuda":
            return Peak(round(torch.cuda.max_memory_allocated() / 2**20), 0)
        return Peak(round(_peak_resident_mb()), round(before))


def _peak_resident_mb() -> float:
    """VmHWM of this process; ru_maxrss, all that other systems have, would start from its parent's."""
    status_file = Path("/proc/self/status")
    if not status_file.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of macOS, in bytes
    status = status_file.read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024

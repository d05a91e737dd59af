"""A training step over several gloo processes of this host, and what of it is communication.

    python -m benchmarks.scaling --counts 1 2 4

Every process has the same batch (weak scaling) and one thread. Beside the step are timed, alone: the sum of the
gradients, the exchange of the key images for shuffled BatchNorm, and the gathering of the keys; and the matching costs
of 32 images, divided among the processes.
"""

import json
import statistics
import subprocess
import sys
from functools import partial

import torch
import torch.distributed as dist
import tyro
from rich.table import Table

from benchmarks.parts import matching_work
from mgd_ssl.bench.config import StepConfig
from mgd_ssl.bench.step import training_step
from mgd_ssl.bench.tables import show
from mgd_ssl.bench.timing import Times, Work, interleaved, timed
from mgd_ssl.config import RuntimeConfig
from mgd_ssl.networks.backbones import build_encoder
from mgd_ssl.run.runtime import Runtime, process
from moco.dist import gather_batch, rank, sum_over_ranks, world_size
from moco.shuffle import permutation, shuffle_batch, unshuffle_batch

STEPS = 8  # timed by every launch, after two
MATCHED = 32  # images of the matching costs
PARTS = ("step", "gradients", "images", "keys", "matching")


def main(counts: tuple[int, ...] = (1, 2, 4), batch_size: int = 16, image_size: int = 64, rounds: int = 3) -> None:
    """Print a table of medians, and the same as JSON on the last line.

    Args:
        counts: numbers of processes.
        batch_size: images of each of them in a step.
        image_size: edge of an image in pixels.
        rounds: each launches all numbers of processes one after the other.
    """
    if dist.is_torchelastic_launched():
        worker(batch_size, image_size)
        return
    sizes = ["--batch-size", str(batch_size), "--image-size", str(image_size)]
    found = interleaved({count: partial(launched, count, sizes) for count in counts}, rounds, warmup=0)
    table = Table("processes", "images/s", *(f"{name} ms" for name in PARTS))
    medians = {}
    for count, answers in found.items():
        one = {name: statistics.median(answer[name] for answer in answers) for name in PARTS}
        medians[count] = one | {"images_per_second": count * batch_size / one["step"]}
        shown = (f"{1000 * one[name]:.1f}" for name in PARTS)
        table.add_row(str(count), f"{medians[count]['images_per_second']:.1f}", *shown)
    show(table, medians)


def launched(count: int, sizes: list[str]) -> dict[str, float]:
    """What `worker` measures in some processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
    command = [sys.executable, *launcher, "benchmarks.scaling", *sizes]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def worker(batch_size: int, image_size: int) -> None:
    """Measure in one of the processes; rank 0 prints the medians of its seconds."""
    config = StepConfig(batch_size=batch_size, image_size=image_size, runtime=RuntimeConfig(threads=1, device="cpu"))
    with process(config.runtime) as runtime:
        work = work_of(config, runtime)
        times = Times(interleaved({name: partial(started_together, work[name]) for name in PARTS}, STEPS, warmup=2))
        if rank() == 0:
            print(json.dumps({name: times.median(name) for name in PARTS}))


def work_of(config: StepConfig, runtime: Runtime) -> dict[str, Work]:
    """The step, and the parts of it that several processes do together."""
    images = torch.zeros(config.batch_size, 3, config.image_size, config.image_size)
    images = images.to(memory_format=torch.channels_last)
    keys = torch.zeros(config.batch_size, 128)
    order = permutation(world_size() * config.batch_size, 0)
    gradients = torch.cat([torch.zeros_like(p).flatten() for p in build_encoder(config.student, 128).parameters()])
    matched = config.model_copy(update={"batch_size": MATCHED // world_size()})
    return {
        "step": training_step(config, runtime),
        "gradients": lambda: sum_over_ranks(gradients),
        "images": lambda: shuffle_batch(images, order),
        "keys": lambda: gather_batch(unshuffle_batch(keys, order)),
        "matching": matching_work(matched, runtime)[0],
    }


def started_together(work: Work) -> float:
    """Seconds of a call that all processes make together."""
    if world_size() > 1:
        dist.barrier()
    return timed(work)[0]


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.scaling")

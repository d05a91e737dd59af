"""A training step over several gloo processes of this host, and what of it is communication.

    python benchmarks/scaling.py [--counts 1 2 4] [--batch-size 16] [--image-size 64] [--rounds 3]
    python benchmarks/scaling.py --model

--model measures nothing and prints the model of docs/scaling.md: what a step moves, and what it would wait for.

Every process has the same batch (weak scaling) and one thread. Beside the step are timed, alone: the sum of the
gradients, the exchange of the key images for shuffled BatchNorm, and the gathering of the keys; and the matching costs
of 32 images, divided among the processes. Prints a table and, on the last line, JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from mgd_ssl.bench.config import BenchConfig
from mgd_ssl.bench.parts import matching_work
from mgd_ssl.bench.step import training_step
from mgd_ssl.config import RuntimeConfig
from mgd_ssl.networks.backbones import build_encoder
from mgd_ssl.run.runtime import process
from moco.dist import gather_batch, rank, sum_over_ranks, world_size
from moco.shuffle import permutation, shuffle_batch, unshuffle_batch

STEPS = 8  # timed in a round, after two
PARTS = ("step", "gradients", "images", "keys", "matching")
MATCHED = 32  # images of the matching costs


def seconds(work: Callable[[], object]) -> float:
    """Median time of a call that all processes make together."""
    times = []
    for step in range(2 + STEPS):
        if world_size() > 1:
            dist.barrier()
        started = time.perf_counter()
        work()
        if step >= 2:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def worker(batch_size: int, image_size: int) -> None:
    """Measure in one of the processes; rank 0 prints."""
    with process(RuntimeConfig(threads=1, device="cpu")) as runtime:
        config = BenchConfig(batch_size=batch_size, image_size=image_size, runtime=RuntimeConfig(threads=1))
        found = {"step": seconds(training_step(config, runtime))}
        count = world_size() * batch_size
        gradients = [torch.zeros_like(p) for p in build_encoder("resnet18", 128).parameters()]
        images = torch.zeros(batch_size, 3, image_size, image_size).to(memory_format=torch.channels_last)
        keys = torch.zeros(batch_size, 128)
        order = permutation(count, 0)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        found["gradients"] = seconds(lambda: sum_over_ranks(flat))
        found["images"] = seconds(lambda: shuffle_batch(images, order))
        found["keys"] = seconds(lambda: gather_batch(unshuffle_batch(keys, order)))
        shared = MATCHED // world_size()
        found["matching"] = seconds(matching_work("resnet18", "resnet50", shared, image_size, runtime)[0])
        if rank() == 0:
            print(json.dumps(found))


MB = 1e6
PARAMETERS = 11_504_832  # of ResNet-18 with MoCo v2's projection head
IMAGE_BYTES = 3 * 224 * 224 * 4
KEY_BYTES = 128 * 4


def moved(gpus: int, batch: int) -> dict[str, float]:
    """Bytes a GPU receives in a step with a global batch."""
    elsewhere, local = (gpus - 1) / gpus, batch / gpus
    return {
        "gradients": 2 * elsewhere * PARAMETERS * 4,  # ring: reduce, then spread
        "images": elsewhere * local * IMAGE_BYTES,
        "images, if gathered": elsewhere * batch * IMAGE_BYTES,
        "keys": elsewhere * (local + batch) * KEY_BYTES,  # back to their queries, and into the queue
    }


def model(images_per_second: float, launch: float, link: float) -> None:
    """Print where a step's time would go.

    Args:
        images_per_second: of one GPU that has enough of them in a batch.
        launch: seconds the kernels of a step take to launch; no batch is faster.
        link: bytes a second into each GPU from other nodes.
    """
    names = list(moved(8, 256))
    table = Table("GPUs", "batch", "a GPU", "compute ms", *(f"{name} MB / ms" for name in names))
    for gpus, batch in ((8, 256), (64, 256), (64, 2048), (512, 2048), (512, 16384)):
        compute = max(launch, batch / gpus / images_per_second)
        shown = (f"{size / MB:.1f} / {1000 * size / link:.1f}" for size in moved(gpus, batch).values())
        table.add_row(str(gpus), str(batch), f"{batch / gpus:g}", f"{1000 * compute:.1f}", *shown)
    Console(width=140).print(table)


def main() -> None:
    """Interleave the numbers of processes, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--images-per-second", type=float, default=3000, help="of a GPU, for --model")
    parser.add_argument("--launch-ms", type=float, default=12, help="of a step's kernels, for --model")
    parser.add_argument("--gb-per-second", type=float, default=25, help="between nodes, for each GPU, for --model")
    args = parser.parse_args()
    if args.model:
        model(args.images_per_second, args.launch_ms / 1e3, args.gb_per_second * 1e9)
        return
    if args.worker:
        worker(args.batch_size, args.image_size)
        return
    found: dict[int, list[dict[str, float]]] = {count: [] for count in args.counts}
    sizes = ["--batch-size", str(args.batch_size), "--image-size", str(args.image_size)]
    for _ in range(args.rounds):
        for count, rounds in found.items():
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            command = [sys.executable, *launcher, __file__, "--worker", *sizes]
            answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rounds.append(json.loads(answer.stdout.splitlines()[-1]))
    table = Table("processes", "images/s", "step ms", "gradients ms", "images ms", "keys ms", "matching ms")
    medians = {}
    for count, rounds in found.items():
        one = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
        medians[count] = one | {"images_per_second": count * args.batch_size / one["step"]}
        shown = (f"{1000 * one[name]:.1f}" for name in PARTS)
        table.add_row(str(count), f"{medians[count]['images_per_second']:.1f}", *shown)
    Console().print(table)
    print(json.dumps(medians))


if __name__ == "__main__":
    main()

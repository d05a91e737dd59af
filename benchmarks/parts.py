"""Parts of a training step against what they cannot do without: the bytes of the maps, the product with the queue.

python -m benchmarks.parts --image-size 64 --batch-size 32
"""

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mgd_ssl.bench.config import StepConfig
from mgd_ssl.bench.step import training_step
from mgd_ssl.bench.tables import show, step_table
from mgd_ssl.bench.timing import Times, Work, clock_of, compared, repeats_on, timed
from mgd_ssl.command_line import parse
from mgd_ssl.data.order import TrainingOrder
from mgd_ssl.mgd.matching import MatchingStatistics
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.backbones import build_backbone, stage_taps
from mgd_ssl.networks.taps import FeatureTaps
from mgd_ssl.run.runtime import Runtime, process


class PartsConfig(StepConfig):
    """Measure the distillation loss, the queue, a matching update and the order of an epoch."""

    queue_size: int = Field(262_144, ge=2, le=2**26)
    """Negative keys of the large queue."""
    small_queue: int = Field(4096, ge=2, le=2**26)
    """Negative keys of the one it is compared with."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table, and the same as JSON on the last line."""
    config = parse(PartsConfig, sys.argv[1:] if argv is None else argv, "python -m benchmarks.parts")
    with process(config.runtime) as runtime:
        result = {
            **distillation(config, runtime),
            **queue_cost(config, runtime),
            **matching(config, runtime),
            **order_cost(config.batch_size),
        }
    show(step_table(config, result), result)
    return 0


def times_of(work: Mapping[str, Work], config: StepConfig, runtime: Runtime) -> Times:
    """Of calls some of which take less time than to wait for a GPU."""
    return compared(work, config.rounds, config.warmup, clock_of(runtime.device), repeats_on(runtime.device))


def stage_shapes(arch: str, image_size: int) -> list[tuple[int, int, int]]:
    """Channels, height and width of the four tapped maps."""
    backbone = build_backbone(arch).eval()
    taps = FeatureTaps(backbone, [tap.relu for tap in stage_taps(backbone)])
    with torch.no_grad(), taps.record() as maps:
        backbone(torch.zeros(1, 3, image_size, image_size))
    return [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]


def random_maps(arch: str, config: StepConfig, runtime: Runtime) -> list[Tensor]:
    """Maps of a batch as a network's taps give them."""
    dtype = runtime.precision or torch.float32
    made = (
        torch.randn(config.batch_size, *shape, device=runtime.device, dtype=dtype)
        for shape in stage_shapes(arch, config.image_size)
    )
    return [m.to(memory_format=runtime.memory_format) for m in made]


def distillation(config: StepConfig, runtime: Runtime) -> dict[str, float]:
    """The distillation loss, forward and backward, against the reads and writes it cannot do without.

    Returns:
        Seconds of the loss and of its floor (the bytes at the speed of a copy), its bytes, and their ratio.
    """
    student_maps, teacher_maps = (random_maps(arch, config, runtime) for arch in (config.student, config.teacher))
    for m in student_maps:
        m.requires_grad_()
    narrow, wide = ([m.shape[1] for m in maps] for maps in (student_maps, teacher_maps))
    mgd = MGD(narrow, wide).to(runtime.device)
    mgd.rematch([torch.rand(c_s, c_t) for c_s, c_t in zip(narrow, wide, strict=True)])
    if config.runtime.compile:
        mgd.compile()

    def loss() -> None:
        mgd(student_maps, teacher_maps).backward()
        for m in student_maps:
            m.grad = None

    num_bytes = least_bytes(student_maps, teacher_maps)
    half = torch.zeros(num_bytes // 2, dtype=torch.uint8, device=runtime.device)
    other = torch.empty_like(half)
    times = times_of({"loss": loss, "floor": lambda: other.copy_(half)}, config, runtime)
    return {
        "distillation_ms": round(1000 * times.median("loss"), 3),
        "distillation_floor_ms": round(1000 * times.median("floor"), 3),
        "distillation_mb": round(num_bytes / 1e6, 1),
        "distillation_over_floor": round(times.ratio("loss", "floor"), 2),
    }


def least_bytes(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> int:
    """Bytes that reduction and loss read and write at least.

    The teacher's maps are read and the targets written; BatchNorm has to see the student's maps twice, the second time
    with the targets; so has its gradient, which is then written.
    """
    student, teacher = (sum(m.nbytes for m in maps) for maps in (student_maps, teacher_maps))
    return (teacher + student) + 3 * student + 5 * student


def queue_cost(config: PartsConfig, runtime: Runtime) -> dict[str, float]:
    """What a large queue adds to a step beside what it adds to the comparison with it alone."""
    work: dict[str, Work] = {}
    for name, wanted in (("large", config.queue_size), ("small", config.small_queue)):
        size = max(1, wanted // config.batch_size) * config.batch_size
        work[f"step, {name}"] = training_step(config.model_copy(update={"queue_size": size}), runtime)
        work[f"logits, {name}"] = comparison(config.batch_size, size, runtime)
    times = times_of(work, config, runtime)
    return {
        f"{part}_ms_added_by_queue_{config.queue_size}_over_{config.small_queue}": round(
            1000 * (times.median(f"{part}, large") - times.median(f"{part}, small")), 2
        )
        for part in ("step", "logits")
    }


def comparison(batch_size: int, queue_size: int, runtime: Runtime) -> Work:
    """Logits of a batch of queries against a queue, their loss and its gradient."""
    q = torch.randn(batch_size, 128, device=runtime.device, requires_grad=True)
    own = torch.randn(batch_size, 1, device=runtime.device)
    queue = torch.randn(128, queue_size, device=runtime.device)
    labels = torch.zeros(batch_size, dtype=torch.long, device=runtime.device)

    def compare() -> None:
        logits = torch.cat([own, q @ queue], dim=1).div_(0.2)  # [N, 1 + K]
        F.cross_entropy(logits, labels).backward()
        q.grad = None

    return compare


def order_cost(batch_size: int) -> dict[str, float]:
    """Microseconds a step of drawing the order of an epoch, for few and for many images."""
    found = {}
    for num_images in (1000, 1_000_000):
        epochs = max(3, 100_000 // num_images)
        order = TrainingOrder(num_images, batch_size, epochs, 0, 0, 0, 1)
        seconds, _ = timed(partial(deque, order.parts(), maxlen=0))
        found[f"order_us_per_step_of_{num_images}_images"] = round(1e6 * seconds / len(order), 1)
    return found


def matching(config: StepConfig, runtime: Runtime) -> dict[str, float]:
    """Images per second of a matching update: both networks, and the costs of all pairs of channels."""
    update, forward = matching_work(config, runtime)
    times = times_of({"update": update, "forward": forward}, config, runtime)
    return {
        "matching_images_per_second": round(config.batch_size / times.median("update"), 1),
        "matching_over_forward": round(times.ratio("update", "forward"), 2),
    }


def matching_work(config: StepConfig, runtime: Runtime) -> tuple[Work, Callable[[], list[list[Tensor]]]]:
    """What a matching update does with a batch, and the networks' part of it."""
    narrow, wide = (
        [c for c, _, _ in stage_shapes(arch, config.image_size)] for arch in (config.student, config.teacher)
    )
    costs = MatchingStatistics(narrow, wide, runtime.device)
    networks = [build_backbone(arch).eval().to(runtime.device) for arch in (config.student, config.teacher)]
    taps = []
    for network in networks:
        network.to(memory_format=runtime.memory_format)
        taps.append(FeatureTaps(network, [tap.relu for tap in stage_taps(network)]))
    images = torch.randn(config.batch_size, 3, config.image_size, config.image_size, device=runtime.device)
    images = images.contiguous(memory_format=runtime.memory_format)

    @torch.no_grad()
    def forward() -> list[list[Tensor]]:
        found = []
        for network, tap in zip(networks, taps, strict=True):
            with runtime.autocast(), tap.record() as maps:
                network(images)
            found.append(maps)
        return found

    return lambda: costs.update(*forward()), forward


if __name__ == "__main__":
    sys.exit(main())

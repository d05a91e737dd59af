"""Parts of a training step against what they cannot do without: the bytes of the maps, the product with the queue."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mgd_ssl.bench.config import BenchConfig
from mgd_ssl.bench.step import training_step
from mgd_ssl.bench.timing import interleaved
from mgd_ssl.data.order import TrainingOrder
from mgd_ssl.mgd.matching import MatchingStatistics
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.backbones import build_backbone, stage_taps
from mgd_ssl.networks.taps import FeatureTaps
from mgd_ssl.run.runtime import Runtime

QUEUES = (4096, 262_144)  # sizes compared


def stage_shapes(arch: str, image_size: int) -> list[tuple[int, int, int]]:
    """Channels, height and width of the four tapped maps."""
    backbone = build_backbone(arch).eval()
    taps = FeatureTaps(backbone, [tap.relu for tap in stage_taps(backbone)])
    with torch.no_grad(), taps.record() as maps:
        backbone(torch.zeros(1, 3, image_size, image_size))
    return [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]


def distillation(
    student: str, teacher: str, batch_size: int, image_size: int, rounds: int, compiled: bool, runtime: Runtime
) -> dict[str, float]:
    """The distillation loss, forward and backward, against reading each map once and writing the gradients once.

    Returns:
        Seconds of the loss and of its floor (the bytes at the speed of a copy), its bytes, and their ratio.
    """
    shapes = [stage_shapes(arch, image_size) for arch in (student, teacher)]
    narrow, wide = ([c for c, _, _ in stages] for stages in shapes)
    mgd = MGD(narrow, wide).to(runtime.device)
    mgd.rematch([torch.rand(s[0], t[0]) for s, t in zip(*shapes, strict=True)])
    if compiled:
        mgd.compile()
    dtype = runtime.precision or torch.float32

    def maps(stages: list[tuple[int, int, int]]) -> list[Tensor]:
        made = (torch.randn(batch_size, *shape, device=runtime.device, dtype=dtype) for shape in stages)
        return [m.to(memory_format=runtime.memory_format) for m in made]

    student_maps, teacher_maps = ([m.requires_grad_() for m in maps(shapes[0])], maps(shapes[1]))

    def loss() -> None:
        mgd(student_maps, teacher_maps).backward()
        for m in student_maps:
            m.grad = None

    num_bytes = sum(m.nbytes for m in teacher_maps) + 2 * sum(m.nbytes for m in student_maps)
    half = torch.zeros(num_bytes // 2, dtype=torch.uint8, device=runtime.device)
    other = torch.empty_like(half)
    seconds = interleaved({"loss": loss, "floor": lambda: other.copy_(half)}, rounds, runtime)
    return {
        "distillation_ms": round(1000 * seconds["loss"], 3),
        "distillation_floor_ms": round(1000 * seconds["floor"], 3),
        "distillation_mb": round(num_bytes / 1e6, 1),
        "distillation_over_floor": round(seconds["loss"] / seconds["floor"], 2),
    }


def queue_cost(config: BenchConfig, runtime: Runtime) -> dict[str, float]:
    """What a large queue adds to a step beside what it adds to the comparison with it alone."""
    small, large = QUEUES
    work: dict[str, Callable[[], object]] = {}
    for size in QUEUES:
        size -= size % config.batch_size
        work[f"step {size}"] = training_step(config.model_copy(update={"queue_size": size}), runtime)
        work[f"logits {size}"] = comparison(config.batch_size, size, runtime)
    step_small, logits_small, step_large, logits_large = interleaved(work, config.rounds, runtime).values()
    return {
        f"step_ms_added_by_queue_{large}_over_{small}": round(1000 * (step_large - step_small), 2),
        f"logits_ms_added_by_queue_{large}_over_{small}": round(1000 * (logits_large - logits_small), 2),
    }


def comparison(batch_size: int, queue_size: int, runtime: Runtime) -> Callable[[], None]:
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
        started = time.perf_counter()
        for _ in order.parts():
            pass
        found[f"order_us_per_step_of_{num_images}_images"] = round(
            1e6 * (time.perf_counter() - started) / len(order), 1
        )
    return found


def matching(
    student: str, teacher: str, batch_size: int, image_size: int, rounds: int, runtime: Runtime
) -> dict[str, float]:
    """Images per second of a matching update: both networks, and the costs of all pairs of channels."""
    update, forward = matching_work(student, teacher, batch_size, image_size, runtime)
    seconds = interleaved({"update": update, "forward": forward}, rounds, runtime)
    return {
        "matching_images_per_second": round(batch_size / seconds["update"], 1),
        "matching_over_forward": round(seconds["update"] / seconds["forward"], 2),
    }


def matching_work(
    student: str, teacher: str, batch_size: int, image_size: int, runtime: Runtime
) -> tuple[Callable[[], object], Callable[[], object]]:
    """What a matching update does with a batch, and the networks' part of it."""
    narrow, wide = ([c for c, _, _ in stage_shapes(arch, image_size)] for arch in (student, teacher))
    costs = MatchingStatistics(narrow, wide, runtime.device)
    networks = [build_backbone(arch).eval().to(runtime.device) for arch in (student, teacher)]
    taps = []
    for network in networks:
        network.to(memory_format=runtime.memory_format)
        taps.append(FeatureTaps(network, [tap.relu for tap in stage_taps(network)]))
    images = torch.randn(batch_size, 3, image_size, image_size, device=runtime.device)
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

"""What a guided step of a detector costs beside its bare networks: `python -m benchmarks.detection_step`.

Bare: a forward pass of the teacher's backbone, forward and backward of the student with torchvision's own losses, SGD.
Both are given the same images, take turns, and are timed in seconds of the processor; the median of many is told.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from mgd_ssl.networks.backbones import initial_classifier
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.tasks.detection.build import build
from mgd_ssl.tasks.detection.config import DetectConfig
from mgd_ssl.tasks.detection.detector import Boxes
from mgd_ssl.tasks.detection.padding import PaddedSeen
from mgd_ssl.tasks.detection.weights import begin
from mgd_ssl.training.update import Update, sgd

CPU = Runtime(torch.device("cpu"), None, torch.channels_last, 1)
CLASSES, BOXES, BATCH = 80, 7, 2


def main(side: int, rounds: int) -> None:
    """Print the medians and their ratio."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    sizes, targets = torch.full((BATCH, 2), side), list[Boxes]()
    for _ in range(BATCH):
        corners = torch.rand(BOXES, 2, generator=generator) * side * 0.6
        edges = side * (0.1 + 0.3 * torch.rand(BOXES, 2, generator=generator))
        labels = torch.randint(CLASSES, (BOXES,), generator=generator)
        targets.append({"boxes": torch.cat([corners, corners + edges], dim=1), "labels": labels})

    config = DetectConfig(out=Path("unused"), network={"group_norm_last_blocks": True})
    network = initial_classifier("resnet50", 1, 1)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.uniform_(-0.1, 0.1, generator=generator)  # as if it had been trained
    teacher = Teacher(network)
    guided = build(config, begin(config), CLASSES, teacher).to(memory_format=torch.channels_last)
    (mgd,) = (term.mgd for _, term in guided.guide.named_terms())  # type: ignore[attr-defined]
    mgd.set_assignments([torch.arange(a.numel()).view(a.shape) for a in mgd.assignments])
    teacher.fold()
    teacher.to(memory_format=torch.channels_last)
    alone = build(config, begin(config), CLASSES, None).to(memory_format=torch.channels_last)
    updates = [Update(m, sgd(m.parameters(), 1e-6, 0.9, 1e-4), lambda step: 1e-6, CPU) for m in (guided, alone)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for step in range(rounds + 2):
        for update, spent in zip(updates, seconds, strict=True):
            began = time.process_time()
            maps = teacher(images)
            prepared = guided.guide.prepare(PaddedSeen(maps), step) if update is updates[0] else {}
            update((images, sizes, targets, prepared), step)
            spent.append(time.process_time() - began)
    ours, bare = (statistics.median(spent[2:]) for spent in seconds)
    ratio = statistics.median(a / b for a, b in zip(seconds[0][2:], seconds[1][2:], strict=True))
    print(f"side {side}, batch {BATCH}: guided {ours:.3f} s, bare {bare:.3f} s, ratio {ratio:.3f} ({rounds} rounds)")


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["224"])[0]), int((sys.argv[2:] or ["15"])[0]))

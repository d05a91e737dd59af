"""`python -m benchmarks.published`: our step, its memory and our views against those of the published programs."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from rich.console import Console
from torch import Tensor
from torchvision import transforms

from mgd_ssl.bench.config import StepConfig
from mgd_ssl.bench.memory import peak_memory
from mgd_ssl.bench.step import training_step
from mgd_ssl.bench.tables import show, stage_table, step_table
from mgd_ssl.bench.timing import Work, clock_of, compared
from mgd_ssl.bench.views import Cost, Stages, stage_costs
from mgd_ssl.command_line import parse
from mgd_ssl.data.decode import decode
from mgd_ssl.networks.backbones import build_backbone, build_encoder, stage_taps
from mgd_ssl.networks.taps import FeatureTaps
from mgd_ssl.run.runtime import Runtime, process


class PublishedConfig(StepConfig):
    """Measure our step and our views against those of the published programs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print tables, and the same as JSON on the last line."""
    config = parse(PublishedConfig, sys.argv[1:] if argv is None else argv, "python -m benchmarks.published")
    result = {**step_against_published(config), **memory_against_published(config)}
    stages = {name: asdict(cost) for name, cost in views_against_published(config).items()}
    Console().print(step_table(config, result))
    show(stage_table(config.image_size, stages, "published"), {**result, "stages": stages})
    return 0


def step_against_published(config: StepConfig) -> dict[str, float]:
    """Images per second of both steps, and the median of the rounds' ratios."""
    with process(config.runtime) as runtime:
        work = {"step": training_step(config, runtime), "published": published_step(config, runtime)}
        times = compared(work, config.rounds, config.warmup, clock_of(runtime.device))
    speeds = {f"{name}_images_per_second": round(config.batch_size / times.median(name), 2) for name in work}
    return {**speeds, "step_over_published": round(times.ratio("published", "step"), 3)}


def memory_against_published(config: StepConfig) -> dict[str, float]:
    """Peak memory of both steps, in processes of their own."""
    return {
        "step_peak_mb": peak_memory(training_step, config).whole,
        "published_peak_mb": peak_memory(published_step, config).whole,
    }


def views_against_published(config: StepConfig) -> dict[str, Cost]:
    """torchvision's transforms, which end in normalised floats, beside what a data worker does for the cpu and device
    backends."""
    stages = Stages(config.image_size)
    transform = published_transforms(config.image_size)

    def published() -> None:
        for file in stages.files:
            image = decode(file)
            for _ in range(2):
                transform(image)

    return stage_costs({backend: (published, stages.whole(backend)) for backend in ("cpu", "device")}, config.rounds)


def published_step(config: StepConfig, runtime: Runtime) -> Work:
    """The step as the published program does it, in our words: all in float32 and uncompiled, the teacher with
    autograd, absolute max pooling by argmax and gather of all groups at once, a copy of the queue.

    Source: unsup/ of https://github.com/kaiyuyue/mgd, which is a fork of MoCo.
    """
    device = runtime.device
    teacher = build_backbone(config.teacher).eval().to(device)
    query, key = (build_encoder(config.student, 128).to(device) for _ in range(2))
    taps = [FeatureTaps(network, [tap.relu for tap in stage_taps(network)]) for network in (query, teacher)]
    channels = [(s.channels, t.channels) for s, t in zip(stage_taps(query), stage_taps(teacher), strict=True)]
    norms = [torch.nn.BatchNorm2d(c_s).to(device) for c_s, _ in channels]
    groups = [torch.randperm(c_t)[: c_t // c_s * c_s].view(c_s, -1).to(device) for c_s, c_t in channels]
    queue = F.normalize(torch.randn(128, config.queue_size, device=device), dim=0)
    optimizer = torch.optim.SGD(query.parameters(), 0.03, 0.9, weight_decay=1e-4)
    size = (config.batch_size, 3, config.image_size, config.image_size)
    im_q, im_k = (torch.randn(size, device=device) for _ in range(2))
    labels = torch.zeros(config.batch_size, dtype=torch.long, device=device)

    def step() -> None:
        with taps[0].record() as student_maps:
            q = F.normalize(query(im_q), dim=1)  # [N, 128]
        with torch.no_grad():
            for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
                slow.data = slow.data * 0.999 + fast.data * 0.001
            k = F.normalize(key(im_k), dim=1)
        own = torch.einsum("nc,nc->n", q, k).unsqueeze(1)
        logits = torch.cat([own, torch.einsum("nc,ck->nk", q, queue.clone().detach())], dim=1) / 0.2
        loss = F.cross_entropy(logits, labels)
        with taps[1].record() as teacher_maps:
            teacher(im_q)
        for weight, norm, group, student_map, teacher_map in zip(
            (0.125, 0.25, 0.5, 1.0), norms, groups, student_maps, teacher_maps, strict=True
        ):
            of_group = teacher_map[:, group]  # [N, C_s, G, H, W]
            chosen = of_group.abs().argmax(dim=2, keepdim=True)
            target = torch.max(of_group.gather(2, chosen).squeeze(2), torch.tensor(-0.8, device=device)).detach()
            student_map = norm(student_map)
            counts = (student_map > target) | (target > 0)
            loss = loss + 1e-4 * weight * (F.mse_loss(student_map, target, reduction="none") * counts).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue[:, : config.batch_size] = k.T

    return step


def published_transforms(size: int) -> Callable[[Image.Image], Tensor]:
    """MoCo v2's augmentation as in main_moco.py of https://github.com/facebookresearch/moco."""
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    blur = transforms.RandomApply([_pil_blur], p=0.5)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
            jitter,
            transforms.RandomGrayscale(p=0.2),
            blur,
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def _pil_blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(float(np.random.uniform(0.1, 2.0))))


if __name__ == "__main__":
    sys.exit(main())

"""A training step, the bare networks in it, the step as the published program does it, and the memory of each."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgd_ssl.bench.config import BenchConfig
from mgd_ssl.config import DataConfig, MoCoConfig, OptimConfig, PretrainConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.samples import PretrainBatch, chosen_backend
from mgd_ssl.networks.backbones import build_backbone, build_encoder, stage_taps
from mgd_ssl.networks.taps import FeatureTaps
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime, process
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.moco import build_method
from mgd_ssl.tasks.pretraining import Pretraining, update_of
from moco import ViewPolicy, draw_view


def training_step(config: BenchConfig, runtime: Runtime) -> Callable[[], None]:
    """A step of a run, from the uint8 batch to the updated queue."""
    pretrain_config = PretrainConfig(
        student=config.student,
        out=Path("none"),
        data=DataConfig(train=Path("none"), image_size=config.image_size),
        moco=MoCoConfig(queue_size=config.queue_size),
        optim=OptimConfig(batch_size=config.batch_size, epochs=1),
        runtime=config.runtime,
    )
    torch.manual_seed(0)
    teacher = Teacher(build_backbone(config.teacher))
    method = build_method(pretrain_config, teacher)
    teacher.fold()
    for module in (method, teacher):
        module.to(runtime.device).to(memory_format=runtime.memory_format)
    with tempfile.TemporaryDirectory() as folder:
        images = ImageList(Path(folder), [str(i) for i in range(config.batch_size)])
        task = Pretraining(pretrain_config, method, teacher, images, Session(Path(folder), 1, runtime))
    assert task.mgd is not None
    task.mgd.set_assignments([torch.randperm(a.numel()).view(a.shape) for a in task.mgd.assignments])
    update = update_of(pretrain_config, task)
    method.train()
    size = (config.batch_size, config.image_size, config.image_size, 3)
    im_q, im_k = (torch.randint(256, size, dtype=torch.uint8) for _ in range(2))
    batch = PretrainBatch(im_q, im_k, [])
    if chosen_backend("auto", runtime.device) == "device":  # finishing the views is a part of the step
        rows = view_rows(config.batch_size)
        batch = PretrainBatch(im_q.pin_memory(), im_k.pin_memory(), [], rows.pin_memory())

    def step() -> None:
        task.after_step(update(task.inputs(batch, 0), 0).carried)

    return step


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


def published_step(config: BenchConfig, runtime: Runtime) -> Callable[[], None]:
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


def view_rows(num_images: int) -> Tensor:
    """Parameters of both views of a batch, [2, N, 15]."""
    return torch.tensor(
        [
            [draw_view(ViewPolicy(), 500, 375, seed=0, epoch=0, index=i, view=v) for i in range(num_images)]
            for v in range(2)
        ]
    )


def memory(config: BenchConfig) -> dict[str, Any]:
    """Peak memory of the step beside that of the bare networks, with and without what the libraries take, and of the
    published step."""
    step, bare, published = (_in_own_process(config, name) for name in ("step", "bare", "published"))
    libraries = min(step["libraries_mb"], bare["libraries_mb"])
    return {
        "step_peak_mb": step["peak_mb"],
        "bare_peak_mb": bare["peak_mb"],
        "published_peak_mb": published["peak_mb"],
        "memory_ratio": round(step["peak_mb"] / bare["peak_mb"], 3),
        "libraries_mb": libraries,
        "memory_ratio_without_libraries": round((step["peak_mb"] - libraries) / (bare["peak_mb"] - libraries), 3),
    }


def peak_memory(config: BenchConfig) -> dict[str, float]:
    """Most memory held while one of the two runs, in MB: of the device, or of this whole process on a CPU."""
    before = _peak_resident_mb()
    with process(config.runtime) as runtime:
        works = {"step": training_step, "bare": bare_networks, "published": published_step}
        work = works[config.only or "step"](config, runtime)
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
        "--runtime.compile" if runtime.compile else "--runtime.no-compile",
    ]
    command = [sys.executable, "-m", "mgd_ssl.cli", "bench", "--only", name, *flags]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return result

"""The fused teacher of a step on a GPU against the plain one; one of the checks of `mgd_ssl.bench.gpu_checks`."""

from dataclasses import replace
from typing import Any

import torch

from mgd_ssl.bench.timing import Work, clock_of, compared
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.convolution_relu import convolution_relu
from mgd_ssl.networks.fused import fused_teacher, proven
from mgd_ssl.networks.low_precision import half_teacher
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime

ARCH, BATCH, SIZE = "resnet50", 256, 224


def fused_against_plain(runtime: Runtime) -> dict[str, Any]:
    """11. The teacher in bfloat16: all but a few convolutions fused, the maps the same, in no more time than plain."""
    half, last = replace(runtime, precision=torch.bfloat16), torch.channels_last
    on_gpu = runtime.device.type == "cuda"
    images = torch.randn(BATCH, 3, SIZE, SIZE, device=runtime.device).to(memory_format=last)
    found: dict[str, Any] = {"passed": True}
    for how in ("eager", "compiled") if on_gpu else ("eager",):
        torch.manual_seed(0)
        whole = Teacher(build_backbone(ARCH))
        whole.fold()
        plain = half_teacher(whole.to(runtime.device).to(memory_format=last), torch.bfloat16)
        fused = fused_teacher(plain)
        assert fused is not None
        graph: Any = fused.backbone.get_submodule("fused")
        count = sum(node.target is convolution_relu for node in graph.graph.nodes)
        if how == "compiled":
            for each in (plain, fused):
                each.backbone.compile(dynamic=False)
        with half.autocast():
            taken = proven(fused, plain, images) is fused
            work: dict[str, Work] = {"fused": lambda f=fused: f(images), "plain": lambda p=plain: p(images)}  # type: ignore[misc]
            times = compared(work, 5, 2, clock_of(runtime.device), 10 if on_gpu else 1)
        left = sum(node.target is convolution_relu for node in graph.graph.nodes)
        ratio = times.ratio("fused", "plain")
        found |= {
            f"fused_{how}": f"{left if taken else 0} of {count}",
            f"fused_ms_{how}": round(1000 * times.median("fused"), 2),
            f"fused_over_plain_{how}": round(ratio, 3),
        }
        found["passed"] &= taken and 10 * left >= 9 * count and (ratio <= 1 or not on_gpu)
        torch._dynamo.reset()
    return found

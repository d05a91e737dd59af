"""A teacher's forward pass on a GPU, plain and fused, without one: `python -m tests.gpu_teacher` prints JSON.

Eager, its operations are counted on tensors that have a device and no values (`tests.fake_cuda`); compiled, its kernels
are those that inductor makes for an H100 (`tests.sm90`).
"""

import json
from collections import Counter
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mgd_ssl.networks.backbones import build_backbone, set_head
from mgd_ssl.networks.fused import fused_teacher
from mgd_ssl.networks.low_precision import half_teacher
from mgd_ssl.networks.teacher import Teacher
from tests.fake_cuda import moved, on_gpu, pretending
from tests.sm90 import MODE, kernels
from tests.sm90_shapes import BATCH, SIZE

HALF = torch.bfloat16
ALONE = ("relu", "relu_", "add", "add_", "_to_copy", "copy_", "clone")  # they read and write maps, and do little else


class Operations(TorchDispatchMode):
    """Counts operations by name, and the bytes of those that are kernels of their own around convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.__name__.partition(".")[0]
        self.names[name] += 1
        if name in ALONE:
            self.bytes += sum(each.nbytes for each in tree_leaves((args, out)) if isinstance(each, Tensor))
        if name == "convolution" and args[2] is not None:
            self.bytes += 2 * out.nbytes  # cuDNN's convolution knows no bias: torch adds it afterwards
            self.names["bias of a convolution"] += 1
        return out


def eager(teacher: Teacher) -> dict[str, Any]:
    """Operations of a forward pass, and gigabytes of those around convolutions."""
    mode, operations = FakeTensorMode(allow_non_fake_inputs=True), Operations()
    with pretending(mode):
        moved(teacher, mode)
        images = on_gpu(torch.empty(BATCH, 3, SIZE, SIZE), mode)
        with torch.autocast("cuda", dtype=HALF), operations:
            teacher(images)
    return {"operations": dict(operations.names), "gigabytes": round(operations.bytes / 1e9, 3)}


def compiled(teacher: Teacher) -> dict[str, Any]:
    """Launches of a forward pass, and all gigabytes it reads and writes."""
    state = {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())}
    with MODE:
        values = [torch.empty(value.shape, dtype=value.dtype) for value in state.values()]
        given = [*values, torch.empty(BATCH, 3, SIZE, SIZE, dtype=HALF)]
        given = [each.to(memory_format=torch.channels_last) if each.dim() == 4 else each for each in given]

    def call(*inputs: Tensor) -> Any:
        return tuple(functional_call(teacher, dict(zip(state, inputs, strict=False)), inputs[len(state) :]))

    # without a driver torch does not know that cuDNN would take the maps as they lie
    with patch.object(torch._C, "_conv_determine_backend_memory_format", lambda *args: torch.channels_last):
        (found,) = kernels(call, given, {}, False)
    fused = found.code.count(" = torch.ops.mgd_ssl.convolution_relu.default(")
    return {"launches": found.launches + fused, "gigabytes": round(found.gigabytes, 3)}


def teachers() -> dict[str, Teacher]:
    """ResNet-50 in bfloat16, plain and fused."""
    with unset_fake_temporarily():
        backbone = build_backbone("resnet50")
        set_head(backbone, nn.Identity())
        whole = Teacher(backbone)
        whole.fold()
        half = half_teacher(whole, HALF)
        fused = fused_teacher(half)
    assert fused is not None
    return {"plain": half, "fused": fused}


if __name__ == "__main__":
    torch._C._ensureCUDADeviceGuardSet()
    found = {name: {"compiled": compiled(each)} for name, each in teachers().items()}
    for name in found:
        found[name]["eager"] = eager(teachers()[name])
    print(json.dumps(found))

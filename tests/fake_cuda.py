"""A GPU whose tensors have no values, for `tests.fake_scenarios`.

torch's fake tensors carry a device, a shape and a type, so that every operation can be watched: which devices its
tensors lie on, whether it would have to read a value from the device, which copies there are. A process of its own, as
what it pretends cannot be taken back. Kernels, streams and the backward pass of autograd, which wants a real driver,
are not run: gradients are put in place of the latter.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
BATCH, SIZE, CLASSES = 8, 32, 10
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_", "is_nonzero", "equal", "bincount")
PROJECT = ("mgd_ssl", "moco", "linear_eval")
PINNED: dict[int, Tensor] = {}  # by their id; kept, so that it stays theirs


class Watch(TorchDispatchMode):
    """Takes note of operations that mix devices or need a value, and of copies."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []
        self.reads: list[str] = []
        self.copies: Counter[str] = Counter()
        self.on_gpu = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func.__name__.partition(".")[0]
        if name.startswith(READS) and any(each.is_cuda for each in before):
            self.reads.append(f"{name} at {where()}")
        out = func(*args, **(kwargs or {}))
        after = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.on_gpu += any(each.is_cuda for each in before + after)
        kinds = {each.device.type for each in before + after if each.dim() or each.is_cuda}
        if len(kinds) > 1:
            self._across(name, args, kwargs or {}, after)
        return out

    def _across(self, name: str, args: Any, kwargs: Any, after: list[Tensor]) -> None:
        if name not in ("_to_copy", "to", "copy_"):
            self.mixed.append(f"{name} at {where()}")
            return
        source = args[1] if name == "copy_" else args[0]
        waits = not kwargs.get("non_blocking", len(args) > 2 and args[2 if name == "copy_" else 3])
        pinned = source.is_cuda or id(source) in PINNED
        how = "waits" if waits else "from memory that is not pinned" if not pinned else "does not wait"
        shape = "x".join(map(str, source.shape)) or "scalar"
        kind = str(source.dtype).removeprefix("torch.")
        self.copies[f"{source.device.type} to {after[0].device.type}, {kind} {shape}: {how}"] += 1


def where() -> str:
    """The line of the project that is at work."""
    frames = [f for f in traceback.extract_stack() if any(f"/{name}/" in f.filename for name in PROJECT)]
    return f"{Path(frames[-1].filename).name}: {frames[-1].line}" if frames else "?"


def pinned(tensor: Tensor) -> Tensor:
    """The same values, in memory that is taken for pinned."""
    copy = tensor.clone()
    PINNED[id(copy)] = copy
    return copy


class Stream:
    """Stands for a stream, of which there is none."""

    def __init__(self, *args: Any) -> None: ...

    def wait_stream(self, stream: "Stream") -> None: ...


@contextmanager
def pretending(mode: FakeTensorMode) -> Iterator[None]:
    """There is a GPU, as far as Python can tell, and gradients come without a backward pass."""
    current = Stream()
    with (
        patch.multiple(
            torch.cuda, is_available=lambda: True, is_initialized=lambda: False, current_device=lambda: 0,
            device_count=lambda: 1, is_bf16_supported=lambda *args, **kwargs: True, Stream=Stream,
            stream=lambda stream: nullcontext(), current_stream=lambda device=None: current,
        ),
        patch.multiple(Tensor, pin_memory=pinned, record_stream=lambda tensor, stream: None),
        patch.object(torch, "compile", lambda function, **options: function),
        mode,
    ):  # fmt: skip
        yield


def moved(module: nn.Module, mode: FakeTensorMode) -> None:
    """Put a module's tensors on the GPU, without values."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                fake = on_gpu(parameter.data, mode)
                each._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in each._buffers.items():
            each._buffers[name] = None if buffer is None else on_gpu(buffer, mode)


def on_gpu(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """A tensor as it would be there; images and convolutions channels_last."""
    fake = mode.from_tensor(tensor).to(GPU)
    return fake.to(memory_format=torch.channels_last) if fake.dim() == 4 else fake


def prepare() -> None:
    """Make this process one that may pretend; it cannot be taken back."""
    torch._C._ensureCUDADeviceGuardSet()
    meta = torch.library.Library("aten", "IMPL")  # these have no implementation for tensors without values
    for name in ("_fused_sgd_", "_fused_sgd_.tensor_lr", "_amp_foreach_non_finite_check_and_unscale_"):
        meta.impl(name, lambda *args, **kwargs: None, "Meta")
    meta.impl("_amp_update_scale_", lambda scale, *args, **kwargs: scale, "Meta")
    LIBRARIES.append(meta)


LIBRARIES: list[torch.library.Library] = []


def run(scenario: Callable[[Watch, FakeTensorMode], object]) -> dict[str, Any]:
    """What a scenario does on the GPU in its second time around; the first makes constants and state."""
    mode, watch = FakeTensorMode(allow_non_fake_inputs=True), Watch()
    with pretending(mode):
        scenario(watch, mode)
    return {
        "operations": watch.on_gpu, "mixed": watch.mixed, "reads": watch.reads,
        "copies": dict(sorted(watch.copies.items())),
    }  # fmt: skip

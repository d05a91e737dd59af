"""Tensors of a file that can become a network's weights: dense, of floating point, finite also in float32."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgd_ssl.errors import UserError
from mgd_ssl.printable import shown

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
COUNTER = "num_batches_tracked"  # a BatchNorm's, the one tensor of a backbone that is an integer


def check_names(state: Mapping[Any, Tensor], path: Path) -> None:
    """Raise UserError unless all keys are strings."""
    if odd := [key for key in state if not isinstance(key, str)]:
        raise UserError(f"{path} names a tensor {shown(odd[0])}, which is no text: save a state dict")


def check_plain(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError, naming the first at fault, unless all tensors are dense, on the CPU and of a fitting type."""
    for name, value in state.items():
        if fault := _kind_at_fault(name, value):
            raise UserError(
                f"{path}: {shown(name)} is {fault}, which cannot be the weights of a ResNet: save the state dict of a "
                "plain float32 network"
            )


def check_values(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError, naming the first at fault, unless all values are finite, also in float32, and no variance is
    negative."""
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        if not value.isfinite().all():
            raise UserError(f"{path}: {shown(name)} holds values that are not finite: use an earlier checkpoint")
        if not value.float().isfinite().all():
            raise UserError(
                f"{path}: {shown(name)} holds values beyond the range of float32 (largest {value.abs().max():.3g}): "
                "use an earlier checkpoint"
            )
        if name.endswith("running_var") and (value < 0).any():
            raise UserError(
                f"{path}: {shown(name)} holds negative values ({value.min():.3g}), which no variance has: "
                "use an earlier checkpoint"
            )


def casts(state: Mapping[str, Tensor]) -> tuple[tuple[str, int], ...]:
    """Types other than float32 that are rounded or widened when they become weights, and how many tensors have them."""
    other = (
        value.dtype for name, value in state.items() if not name.endswith(COUNTER) and value.dtype != torch.float32
    )
    return tuple((_short(kind), count) for kind, count in Counter(other).items())


def _kind_at_fault(name: str, value: Tensor) -> str | None:
    """What is odd about a tensor, None when nothing is."""
    if value.is_nested:
        return "a nested tensor"
    if value.is_meta:
        return "a meta tensor, a shape without values"
    if value.is_quantized:
        return f"quantised ({_short(value.dtype)})"
    if value.layout != torch.strided:
        return f"not dense ({_short(value.layout)})"
    if value.device.type != "cpu":
        return f"on the device {value.device}"
    if name.endswith(COUNTER):
        return None if value.dtype in (*FLOATS, *INTEGERS) else f"of type {_short(value.dtype)}"
    return None if value.dtype in FLOATS else f"of type {_short(value.dtype)}"


def _short(kind: object) -> str:
    return str(kind).removeprefix("torch.")

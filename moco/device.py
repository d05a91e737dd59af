"""Small tensors on their way to the device, and how functions that only move bytes are compiled for it."""

from typing import Any

import torch
from torch import Tensor

# inductor's options for a function whose time is that of its reads and writes: by default it writes down what it could
# compute anew from what it reads anyway (the distillation loss of a step at 224 pixels and batch 256 in bfloat16 takes
# 4.9 GB then, and 2.6 with these); for whole networks the default is the better one
FEWEST_BYTES: dict[str, Any] = {
    "realize_reads_threshold": 64,
    "realize_opcount_threshold": 500,
    "realize_acc_reads_threshold": 64,
}


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from main memory without waiting for what the device is doing.

    A copy from memory that is not pinned would wait; pinning small tensors costs a copy on the CPU, and torch keeps
    the pinned memory until the device has read it.
    """
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

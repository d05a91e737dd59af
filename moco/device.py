"""Small tensors on their way to the device."""

import torch
from torch import Tensor


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from main memory without waiting for what the device is doing.

    A copy from memory that is not pinned would wait; pinning small tensors costs a copy on the CPU, and torch keeps
    the pinned memory until the device has read it.
    """
    if tensor.device.type != "cpu" or device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

"""Networks with random weights, and files of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor random, as after training; BatchNorm weights of both signs."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return network


def save(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "weights.pt"
    torch.save(content, path, **options)
    return path

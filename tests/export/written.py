"""Networks to export, and what was written of them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mgd_ssl.export.config import ExportConfig
from mgd_ssl.export.exported import Exported, export
from mgd_ssl.networks.backbones import build_backbone


def trained(arch: str, classes: int | None = None) -> nn.Module:
    """A network whose BatchNorms have seen data."""
    torch.manual_seed(3)
    network = build_backbone(arch, classes)
    with torch.no_grad():
        network(torch.rand(4, 3, 48, 48))
    return network.eval()


def saved(network: nn.Module, path: Path, with_head: bool) -> Path:
    head = f"{'fc' if hasattr(network, 'fc') else 'classifier'}."
    state = {name: value for name, value in network.state_dict().items() if with_head or not name.startswith(head)}
    torch.save(state, path)
    return path


def exported(source: Path, format: str, out: Path, **changes: Any) -> Exported:
    return export(ExportConfig(source=source, format=format, out=out, image_size=48, **changes))

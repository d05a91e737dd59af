"""A state dict for torchvision's own networks, as torch.save writes it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn

from mgd_ssl.export.config import ExportConfig
from mgd_ssl.export.student import Network, Student
from mgd_ssl.networks.backbones import BACKBONES, MOVED_STRIDE
from mgd_ssl.run.checkpoint import serialised

NAMES = [name for name in BACKBONES if name in torchvision.models.list_models()]  # with the same keys
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(torchvision.models.get_model, name, weights=None) for name in NAMES},
    "mobilenet_v2_moved_stride": partial(
        torchvision.models.MobileNetV2, inverted_residual_setting=MOVED_STRIDE, dropout=0.0
    ),
}


def carries(student: Student) -> bool:
    """Whether torchvision has this network."""
    return student.arch in BUILDERS


def write(student: Student, path: Path, config: ExportConfig) -> None:
    """Write the file."""
    path.write_bytes(serialised(student.weights))


def read(student: Student, path: Path, config: ExportConfig) -> Network:
    """torchvision's network with the weights in a file."""
    network = built(student)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def built(student: Student) -> nn.Module:
    """torchvision's network, freshly initialised, its classifier an identity where the student has none."""
    if student.classes is not None:
        return BUILDERS[student.arch](num_classes=student.classes)
    network = BUILDERS[student.arch]()
    setattr(network, student.head, nn.Identity())
    return network


def usage(student: Student, path: Path) -> str:
    """Python that loads it."""
    classes = "" if student.classes in (None, 1000) else f", num_classes={student.classes}"
    network = f"torchvision.models.get_model({student.arch!r}{classes})"
    if student.arch not in NAMES:
        settings = f"inverted_residual_setting={MOVED_STRIDE}, dropout=0.0"
        network = f"torchvision.models.MobileNetV2({settings}{classes})"
    head = "" if student.classes is not None else f"model.{student.head} = torch.nn.Identity()  # features\n"
    return f"model = {network}\n{head}model.load_state_dict(torch.load({str(path)!r}))"

"""The backbone of a detector: a ResNet's weights under detectron2's names, pickled arrays as it reads them.

Layout of detectron2's tools/convert-torchvision-to-d2.py and of modeling/backbone/resnet.py.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from mgd_ssl.errors import UserError
from mgd_ssl.export import torchvision
from mgd_ssl.export.config import ExportConfig
from mgd_ssl.export.student import Network, Student
from mgd_ssl.networks.backbones import TORCHVISION

PLAIN = {r"\bbn(\d)\.": r"conv\1.norm.", r"\bdownsample\.0\.": "shortcut.", r"\bdownsample\.1\.": "shortcut.norm."}
GROUPS = {"resnext50_32x4d": (32, 4), "resnext101_32x8d": (32, 8), "resnext101_64x4d": (64, 4)}
WIDE = {"wide_resnet50_2": (1, 128), "wide_resnet101_2": (1, 128)}


def carries(student: Student) -> bool:
    """Whether detectron2 builds this network."""
    return student.arch in TORCHVISION


def write(student: Student, path: Path, config: ExportConfig) -> None:
    """Write the file."""
    arrays = {
        renamed(name): value.numpy()
        for name, value in student.weights.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    content = {"model": arrays, "__author__": "mgd_ssl", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))


def renamed(name: str) -> str:
    """`layer1.0.downsample.1.weight` -> `res2.0.shortcut.norm.weight`."""
    for pattern, replacement in PLAIN.items():
        name = re.sub(pattern, replacement, name)
    name, stages = re.subn(r"\blayer([1-4])\.", lambda found: f"res{int(found[1]) + 1}.", name)
    return name if stages else f"stem.{name}"


def read(student: Student, path: Path, config: ExportConfig) -> Network:
    """The arrays in torchvision's network: detectron2 itself is on no package index."""
    arrays: dict[str, Any] = pickle.loads(path.read_bytes())["model"]
    network = torchvision.built(student)
    network.fc = torch.nn.Identity()
    wanted = network.state_dict()
    state = {
        name: value if name.endswith("num_batches_tracked") else torch.from_numpy(arrays.pop(renamed(name)))
        for name, value in wanted.items()
    }
    if arrays:
        raise UserError(f"{len(arrays)} arrays belong to no layer (first: {next(iter(arrays))}): report this as a bug")
    network.load_state_dict(state)
    return network.eval()


def usage(student: Student, path: Path) -> str:
    """The settings of detectron2 that make this network."""
    digits = re.search(r"\d+", student.arch)
    assert digits is not None
    lines = [
        f"MODEL.WEIGHTS: {path}",
        f"MODEL.RESNETS.DEPTH: {digits[0]}",
        "MODEL.RESNETS.STRIDE_IN_1X1: False",
        "INPUT.FORMAT: RGB",
        f"MODEL.PIXEL_MEAN: {[round(255 * value, 3) for value in student.normalisation.mean]}",
        f"MODEL.PIXEL_STD: {[round(255 * value, 3) for value in student.normalisation.std]}",
    ]
    if student.arch in ("resnet18", "resnet34"):
        lines.append("MODEL.RESNETS.RES2_OUT_CHANNELS: 64")
    if shape := (GROUPS | WIDE).get(student.arch):
        lines += [f"MODEL.RESNETS.NUM_GROUPS: {shape[0]}", f"MODEL.RESNETS.WIDTH_PER_GROUP: {shape[1]}"]
    return "\n".join(lines)

"""detectron2's files, read without running any code in them: `.pkl` of numpy arrays, `.pth` of tensors.

Names are those of https://github.com/facebookresearch/detectron2 (modeling/backbone/resnet.py, fpn.py).
"""

import hashlib
import io
import pickle
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from mgd_ssl.config import DEVIATION
from mgd_ssl.errors import UserError
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import build_backbone, set_head
from mgd_ssl.networks.normalisation import Normalisation, take_input_of
from mgd_ssl.networks.plain import check_plain, check_values
from mgd_ssl.networks.weights_file import read_weights

ALLOWED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}  # what a pickle of arrays needs; none of it runs code that the file brings along
BODY = "backbone.bottom_up."
NAMES = [
    (r"stem\.conv1\.norm\.", "bn1."),
    (r"stem\.conv1\.", "conv1."),
    (r"res(\d)\.(\d+)\.shortcut\.norm\.", r"layer\1.\2.downsample.1."),
    (r"res(\d)\.(\d+)\.shortcut\.", r"layer\1.\2.downsample.0."),
    (r"res(\d)\.(\d+)\.conv(\d)\.norm\.", r"layer\1.\2.bn\3."),
    (r"res(\d)\.(\d+)\.conv(\d)\.", r"layer\1.\2.conv\3."),
]  # detectron2's stages are counted from 2
DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
SCORES = ("head.cls_score.bias", "roi_heads.box_predictor.cls_score.bias")
RATIOS_AND_SIZES = 9  # anchors of a position of RetinaNet


class _Arrays(pickle.Unpickler):
    """Builds arrays and builtins, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Raises UnpicklingError for all that is not allowed."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def is_pickle(path: Path) -> bool:
    """Whether a file is named as those of detectron2's model zoo."""
    return path.suffix == ".pkl"


def is_detectron2(names: Collection[str]) -> bool:
    """Whether tensors are named as in detectron2's own checkpoints."""
    return any(name.startswith(BODY) for name in names)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a `.pkl`, by name.

    Raises:
        UserError: when it cannot be read, is damaged, or holds more than arrays.
    """
    try:
        content = _Arrays(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except pickle.UnpicklingError as error:
        if "asks for" in str(error):
            raise UserError(
                f"{path} holds Python objects besides arrays ({error}), which could run code when they are loaded, so "
                "it is refused: pass a file of detectron2's model zoo"
            ) from error
        raise UserError(f"{path} is truncated or damaged: copy or download it again") from error
    except Exception as error:  # damaged pickles make the reader raise anything
        raise UserError(f"{path} is truncated or damaged: copy or download it again") from error
    model = content.get("model", content) if isinstance(content, dict) else None
    arrays = {key: value for key, value in (model or {}).items() if isinstance(value, np.ndarray)}
    if not arrays or not all(isinstance(key, str) for key in arrays):
        raise UserError(f"{path} holds no arrays by name: pass a file of detectron2's model zoo")
    return arrays


class FromDetectron2(NamedTuple):
    """The backbone of a detector in one of its files."""

    backbone: nn.Module
    report: LoadReport
    classes: int | None  # that it detects; None: the file has no head


def load_detectron2(path: Path, arch: str | None = None, normalisation: Normalisation | None = None) -> FromDetectron2:
    """A detector's backbone.

    Files made from Caffe2's weights, known by BatchNorms that are folded, take BGR in other units and have their
    strides in the first convolution of a block; both is put into the network, so that it takes our images.

    Args:
        path: of the file.
        arch: None: told from the shapes.
        normalisation: of its input; None: ours.

    Raises:
        UserError: when it is no ResNet of torchvision's kind, or its input is known and another is asked for.
    """
    tensors, sha256 = _read(path)
    state = {_torchvision_name(key): value for key, value in tensors.items() if key.startswith(BODY)}
    check_plain(state, path)
    check_values(state, path)
    arch = arch or next((each for each in DEPTHS if _fits(state, each)), None)
    if arch is None or not _fits(state, arch):
        raise UserError(f"{path} holds no backbone of a {arch or 'ResNet'} below {BODY}: pass a RetinaNet with one")
    network = build_backbone(arch, 1)
    set_head(network, nn.Identity())
    network.load_state_dict(state, strict=False)  # but for num_batches_tracked all is there
    unused = {"others": len(tensors) - len(state)} if len(tensors) > len(state) else {}
    report = LoadReport(path, sha256, arch, BODY, len(state), unused, layout="detectron2")
    if _from_caffe2(state):
        if normalisation is not None:
            raise UserError(
                f"{path} is made from Caffe2's weights, whose input is known: leave teacher_mean and teacher_std out"
            )
        _take_our_images(network)
    elif normalisation is not None:
        take_input_of(network, normalisation)
        report = report._replace(normalisation=normalisation, normalised_by="as it was set")
    score = next((tensors[name] for name in SCORES if name in tensors), None)
    classes = None if score is None else len(score) // RATIOS_AND_SIZES if SCORES[0] in tensors else len(score) - 1
    return FromDetectron2(network, report, classes)


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors of a file by name, and its sha256."""
    if is_pickle(path):
        tensors = {key: _tensor(value, path) for key, value in read_arrays(path).items()}
        return tensors, hashlib.sha256(path.read_bytes()).hexdigest()
    file = read_weights(path)
    return file.state, file.sha256


def _tensor(value: np.ndarray, path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(value))
    except TypeError as error:
        raise UserError(f"{path} holds an array of type {value.dtype}: pass one of detectron2's model zoo") from error


def _torchvision_name(key: str) -> str:
    name = key.removeprefix(BODY)
    for pattern, new in NAMES:
        if found := re.match(pattern, name):
            begun = found.expand(new)
            return re.sub(r"^layer(\d)", lambda stage: f"layer{int(stage[1]) - 1}", begun) + name[found.end() :]
    return name


def _fits(state: dict[str, Tensor], arch: str) -> bool:
    with torch.device("meta"):
        network = build_backbone(arch, 1)
    set_head(network, nn.Identity())
    wanted = {key: v.shape for key, v in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    return wanted == {key: value.shape for key, value in state.items()}


def _from_caffe2(state: dict[str, Tensor]) -> bool:
    means = [value for key, value in state.items() if key.endswith("running_mean")]
    return all(not value.any() for value in means)


@torch.no_grad()
def _take_our_images(network: nn.Module) -> None:
    """Caffe2's networks see BGR of 0 to 255, the mean taken off and not divided by the deviation."""
    stem = network.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    scale = 255 * torch.tensor(DEVIATION)
    stem.weight.copy_(stem.weight.flip(1) * scale[:, None, None])
    for stage in (2, 3, 4):
        block = network.get_submodule(f"layer{stage}.0")
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)

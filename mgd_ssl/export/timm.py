"""timm's networks: the same functions as torchvision's under other keys, in the same order."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from mgd_ssl.export.config import ExportConfig
from mgd_ssl.export.student import Network, Student
from mgd_ssl.networks.backbones import TORCHVISION


class Twin(NamedTuple):
    """The network of timm that computes the same."""

    name: str
    settings: dict[str, Any]


TWINS = {
    **{name: Twin(name, {}) for name in TORCHVISION},
    "mobilenet_v1": Twin("mobilenetv1_100", {"act_layer": "relu"}),
    "mobilenet_v2": Twin("mobilenetv2_100", {}),
    "mobilenet_v3_small": Twin("mobilenetv3_small_100", {"bn_eps": 1e-3}),
    "mobilenet_v3_large": Twin("mobilenetv3_large_100", {"bn_eps": 1e-3}),
    "efficientnet_b0": Twin("efficientnet_b0", {}),
    "efficientnet_b1": Twin("efficientnet_b1", {}),
    "efficientnet_b2": Twin("efficientnet_b2", {}),
}
HEADED = (
    "mobilenet_v3_small",
    "mobilenet_v3_large",
)  # timm counts a layer to the trunk that torchvision classifies with


def carries(student: Student) -> bool:
    """Whether timm has this network."""
    return student.arch in TWINS and (student.classes is not None or student.arch not in HEADED)


def write(student: Student, path: Path, config: ExportConfig) -> None:
    """Write the file."""
    from safetensors.torch import save_file

    save_file(renamed(student), path, student.metadata())


def read(student: Student, path: Path, config: ExportConfig) -> Network:
    """timm's network with the weights in a file."""
    import timm

    twin = TWINS[student.arch]
    network: nn.Module = timm.create_model(
        twin.name, num_classes=student.classes or 0, checkpoint_path=str(path), **twin.settings
    )
    return network.eval()


def renamed(student: Student) -> dict[str, Tensor]:
    """The student's weights under timm's names."""
    import timm

    twin, weights = TWINS[student.arch], student.weights
    theirs = timm.create_model(twin.name, num_classes=student.classes or 0, **twin.settings).state_dict()
    pairs = zip(theirs.items(), weights.values(), strict=True)  # both in the order of the layers
    return {name: value.reshape(shaped.shape) for (name, shaped), value in pairs}


def usage(student: Student, path: Path) -> str:
    """Python that loads it."""
    twin = TWINS[student.arch]
    more = "".join(f", {name}={value!r}" for name, value in twin.settings.items())
    return (
        f"model = timm.create_model({twin.name!r}, num_classes={student.classes or 0}, "
        f"checkpoint_path={str(path)!r}{more})"
    )

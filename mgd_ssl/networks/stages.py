"""Where networks are read: before the last ReLU of a stage, by module name, family by family."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn
from torchvision.models.resnet import Bottleneck


class StageTap(NamedTuple):
    """Where a stage is read: before its last ReLU."""

    relu: str  # module name of the ReLU (or of whatever takes the map)
    norm: str  # module name of the BatchNorm whose output enters the map last; empty: there is none
    channels: int
    stage: int  # 1 to 4: a quarter, an eighth, a sixteenth, a thirty-second of the image's edge


class Family(NamedTuple):
    """What networks of one class have in common."""

    kind: type[nn.Module]
    classifier: str  # dotted name whose input are the pooled features
    anchor: str  # key that every state dict of the family has: what stands before it in a file is the prefix
    taps: Callable[[nn.Module], list[StageTap]] | None = None  # None: no map before an activation where a stage ends
    names: tuple[str, ...] = ()  # the beginnings of its networks' names


def resnet_taps(network: nn.Module) -> list[StageTap]:
    """The last block of each of the four stages, as tapped in MGD's experiments (section 4)."""
    taps = []
    for stage in range(1, 5):
        last = len(network.get_submodule(f"layer{stage}")) - 1  # type: ignore[arg-type]
        block = f"layer{stage}.{last}"
        norm = "bn3" if isinstance(network.get_submodule(block), Bottleneck) else "bn2"
        taps.append(_tap(network, stage, f"{block}.relu", f"{block}.{norm}"))
    return taps


def mobilenet_v1_taps(network: nn.Module) -> list[StageTap]:
    """The pointwise convolutions before the map becomes smaller, and the last one."""
    return [
        _tap(network, stage, f"model.{block}.5", f"model.{block}.4")
        for stage, block in enumerate((3, 5, 11, 13), start=1)
    ]


def mobilenet_v2_taps(network: nn.Module) -> list[StageTap]:
    """Depthwise convolutions of 144, 192, 384 and 960 channels; of the variant whose stride is moved 192, 384, 960."""
    moved = network.features[7].conv[1][0].stride == (1, 1)  # type: ignore[index, union-attr]
    blocks = {2: 7, 3: 11, 4: 17} if moved else {1: 3, 2: 6, 3: 11, 4: 17}
    return [
        _tap(network, stage, f"features.{block}.conv.1.2", f"features.{block}.conv.1.1")
        for stage, block in blocks.items()
    ]


def shufflenet_v2_taps(network: nn.Module) -> list[StageTap]:
    """Stages 2 to 4; the map of a quarter of the edge comes out of a max pooling and is never negative."""
    taps = []
    for stage in range(2, 5):
        last = len(network.get_submodule(f"stage{stage}")) - 1  # type: ignore[arg-type]
        norm = network.get_submodule(f"stage{stage}.{last}.branch2.6")
        assert isinstance(norm, nn.BatchNorm2d)  # of one of the two halves: margins of such a teacher are measured
        taps.append(StageTap(f"relu{stage}", "", 2 * norm.num_features, stage))
    return taps


def _tap(network: nn.Module, stage: int, relu: str, norm: str) -> StageTap:
    module = network.get_submodule(norm)
    assert isinstance(module, nn.BatchNorm2d)
    return StageTap(relu, norm, module.num_features, stage)


def depthwise_taps(network: nn.Module) -> list[StageTap]:
    """Depthwise convolutions, the last before the maps become smaller (MobileNet-V3, EfficientNet).

    Where their activation is no ReLU a margin of it would mean nothing, so such a teacher's are measured.
    """
    last: dict[int, str] = {}  # how many times smaller than the image -> name
    smaller = 1
    for name, module in network.named_modules():  # in the order they are called
        if isinstance(module, nn.Conv2d):
            smaller *= module.stride[0]
            if 1 < module.groups == module.in_channels:
                last[smaller] = name.removesuffix(".0")
    taps = []
    for stage, name in enumerate((last[4], last[8], last[16], last[32]), start=1):
        tap = _tap(network, stage, f"{name}.2", f"{name}.1")
        rectified = isinstance(network.get_submodule(tap.relu), nn.ReLU | nn.ReLU6)
        taps.append(tap if rectified else tap._replace(norm=""))
    return taps


def regnet_taps(network: nn.Module) -> list[StageTap]:
    """The last block of each of the four stages, after the residual sum, as in a ResNet."""
    taps = []
    for stage in range(1, 5):
        prefix = f"trunk_output.block{stage}"
        last = list(dict(network.get_submodule(prefix).named_children()))[-1]
        taps.append(_tap(network, stage, f"{prefix}.{last}.activation", f"{prefix}.{last}.f.c.1"))
    return taps

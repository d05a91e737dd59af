"""Backbones by name: how each is built, where its classifier is, and where its stages are read.

MoCo's projection head takes the place of the classifier, so that the state-dict keys of a ResNet stay the official
ones. Thin ResNets are of the two published block types, for small images.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeVar

import torch
import torchvision
from torch import nn
from torchvision.models import EfficientNet, MobileNetV2, MobileNetV3
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from mgd_ssl.errors import UserError, nearest
from mgd_ssl.networks.mobilenet_v1 import MobileNetV1
from mgd_ssl.networks.shufflenet_v2 import DeferredShuffleNetV2
from mgd_ssl.networks.vit import ANCHOR, TokenMaps
from moco import projection_head
from moco.keyed import keyed_seed


class ThinResNet(ResNet):
    """torchvision's ResNet with fewer channels and a stem for small images.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks in each of the four stages.
        width: channels of the first stage before the block's expansion (64 in the published networks).
        num_classes: of the classifier.

    The stem is one 3x3 convolution of stride 2 in place of 7x7 and max pooling: at 48 pixels the last
    stage still has 3x3 positions.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], layers: list[int], width: int, num_classes: int = 1
    ) -> None:
        super().__init__(block, [1, 1, 1, 1], num_classes=1)
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity()
        for stage, num_blocks in enumerate(layers):
            planes, stride = width * 2**stage, 1 if stage == 0 else 2
            setattr(self, f"layer{stage + 1}", self._make_layer(block, planes, num_blocks, stride=stride))
        self.fc = nn.Linear(8 * width * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class StageTap(NamedTuple):
    """Where a stage is read: before its last ReLU."""

    relu: str  # module name of the ReLU (or of whatever takes the map)
    norm: str  # module name of the BatchNorm whose output enters the map last; empty: there is none
    channels: int
    stage: int  # 1 to 4: a quarter, an eighth, a sixteenth, a thirty-second of the image's edge


def _resnet_taps(network: nn.Module) -> list[StageTap]:
    """The last block of each of the four stages, as tapped in MGD's experiments (section 4)."""
    taps = []
    for stage in range(1, 5):
        last = len(network.get_submodule(f"layer{stage}")) - 1  # type: ignore[arg-type]
        block = f"layer{stage}.{last}"
        norm = "bn3" if isinstance(network.get_submodule(block), Bottleneck) else "bn2"
        taps.append(_tap(network, stage, f"{block}.relu", f"{block}.{norm}"))
    return taps


def _mobilenet_v1_taps(network: nn.Module) -> list[StageTap]:
    """The pointwise convolutions before the map becomes smaller, and the last one."""
    return [
        _tap(network, stage, f"model.{block}.5", f"model.{block}.4")
        for stage, block in enumerate((3, 5, 11, 13), start=1)
    ]


def _mobilenet_v2_taps(network: nn.Module) -> list[StageTap]:
    """Depthwise convolutions of 144, 192, 384 and 960 channels; of the variant whose stride is moved 192, 384, 960."""
    moved = network.features[7].conv[1][0].stride == (1, 1)  # type: ignore[index, union-attr]
    blocks = {2: 7, 3: 11, 4: 17} if moved else {1: 3, 2: 6, 3: 11, 4: 17}
    return [
        _tap(network, stage, f"features.{block}.conv.1.2", f"features.{block}.conv.1.1")
        for stage, block in blocks.items()
    ]


def _shufflenet_v2_taps(network: nn.Module) -> list[StageTap]:
    """Stages 2 to 4; the map of a quarter of the edge comes out of a max pooling and is never negative."""
    taps = []
    for stage in range(2, 5):
        last = len(network.get_submodule(f"stage{stage}")) - 1  # type: ignore[arg-type]
        norm = network.get_submodule(f"stage{stage}.{last}.branch2.6")
        assert isinstance(norm, nn.BatchNorm2d)  # of one of the two halves: margins of such a teacher are measured
        taps.append(StageTap(f"relu{stage}", "", 2 * norm.num_features, stage))
    return taps


def _vit_taps(network: nn.Module) -> list[StageTap]:
    """The maps that a ViT yields; none before it has met a student's."""
    assert isinstance(network, TokenMaps)
    return [StageTap(f"maps.{stage}", "", network.width, int(stage)) for stage in network.maps]


def _tap(network: nn.Module, stage: int, relu: str, norm: str) -> StageTap:
    module = network.get_submodule(norm)
    assert isinstance(module, nn.BatchNorm2d)
    return StageTap(relu, norm, module.num_features, stage)


class Family(NamedTuple):
    """What networks of one class have in common."""

    kind: type[nn.Module]
    classifier: str  # attribute whose input are the pooled features
    anchor: str  # key that every state dict of the family has: what stands before it in a file is the prefix
    taps: Callable[[nn.Module], list[StageTap]] | None = None  # None: no ReLU stands where a stage ends


FAMILIES = [
    Family(ResNet, "fc", "layer1.0.conv1.weight", _resnet_taps),
    Family(MobileNetV1, "fc", "model.1.3.weight", _mobilenet_v1_taps),
    Family(MobileNetV2, "classifier", "features.1.conv.0.0.weight", _mobilenet_v2_taps),
    Family(DeferredShuffleNetV2, "fc", "stage2.0.branch1.0.weight", _shufflenet_v2_taps),
    Family(MobileNetV3, "classifier", "features.1.block.0.0.weight"),
    Family(EfficientNet, "classifier", "features.1.0.block.0.0.weight"),
    Family(TokenMaps, "head", ANCHOR, _vit_taps),
]

TORCHVISION = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
]
MORE_OF_TORCHVISION = ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_b1"]
MOVED_STRIDE = [
    [1, 16, 1, 1],
    [6, 24, 2, 2],
    [6, 32, 3, 2],
    [6, 64, 4, 1],
    [6, 96, 3, 2],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(torchvision.models.get_model, name, weights=None) for name in TORCHVISION},
    "thin_resnet10": partial(ThinResNet, BasicBlock, [1, 1, 1, 1], 16),
    "thin_resnet14": partial(ThinResNet, Bottleneck, [1, 1, 1, 1], 16),
    "mobilenet_v1": MobileNetV1,
    **{name: partial(torchvision.models.get_model, name, weights=None) for name in MORE_OF_TORCHVISION},
    # the one published for CUB: a larger map through four blocks more, and no dropout; weights are mobilenet_v2's
    "mobilenet_v2_moved_stride": partial(MobileNetV2, inverted_residual_setting=MOVED_STRIDE, dropout=0.0),
    "shufflenet_v2_x0_5": partial(DeferredShuffleNetV2, [24, 48, 96, 192, 1024]),
    "shufflenet_v2_x1_0": partial(DeferredShuffleNetV2, [24, 116, 232, 464, 1024]),
}

T = TypeVar("T")


def build_backbone(name: str, num_classes: int | None = None) -> nn.Module:
    """A freshly initialised backbone with its classifier still on.

    Args:
        name: key of `BACKBONES`.
        num_classes: of the classifier; None: as many as the network usually has.

    Raises:
        UserError: for a name that is not in `BACKBONES`.
    """
    if name not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise UserError(f"unknown architecture {name!r}{nearest(name, list(BACKBONES))} (choose one of {known})")
    return BACKBONES[name]() if num_classes is None else BACKBONES[name](num_classes=num_classes)


def family_of(network: nn.Module) -> Family:
    """The family of a network that `build_backbone` built."""
    return next(family for family in FAMILIES if isinstance(network, family.kind))


def head_of(network: nn.Module) -> nn.Module:
    """Whatever stands where the classifier was built."""
    return network.get_submodule(family_of(network).classifier)


def set_head(network: nn.Module, head: nn.Module) -> None:
    """Put a module where the classifier is: pooled features [N, d] -> anything."""
    setattr(network, family_of(network).classifier, head)


def feature_width(network: nn.Module) -> int:
    """Length d of the features that enter the classifier, which is still on."""
    return next(module.in_features for module in head_of(network).modules() if isinstance(module, nn.Linear))


def num_classes_of(network: nn.Module) -> int:
    """Of the classifier, which is still on."""
    return [module.out_features for module in head_of(network).modules() if isinstance(module, nn.Linear)][-1]


def without_head(network: nn.Module, state: Mapping[str, T]) -> dict[str, T]:
    """Those entries of a state dict of this network that are not the classifier's, or of what took its place."""
    prefix = f"{family_of(network).classifier}."
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


def build_encoder(name: str, dim: int, head_width: int | None = None) -> nn.Module:
    """A backbone with MoCo v2's projection head in place of its classifier: [N, 3, H, W] -> [N, dim].

    Args:
        name: key of `BACKBONES`.
        dim: size of the embedding.
        head_width: hidden width of the head, the backbone's when None.
    """
    encoder = build_backbone(name)
    set_head(encoder, projection_head(feature_width(encoder), dim, head_width))
    return encoder


def initial_encoder(name: str, dim: int, head_width: int | None, seed: int) -> nn.Module:
    """`build_encoder` with the weights a run of this seed begins with, on the CPU; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "weights"))
        return build_encoder(name, dim, head_width)


def initial_classifier(name: str, num_classes: int, seed: int) -> nn.Module:
    """`build_backbone` with the weights a run of this seed begins with; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "weights"))
        return build_backbone(name, num_classes)


def trunk(encoder: nn.Module) -> nn.Module:
    """The encoder without its head, sharing its modules: [N, 3, H, W] -> pooled features [N, d]."""
    shared = copy.copy(encoder)
    shared._modules = dict(encoder._modules)  # its own list of the same modules
    set_head(shared, nn.Identity())
    return shared


def stage_taps(encoder: nn.Module) -> list[StageTap]:
    """Where the stages of a network are read.

    Raises:
        UserError: for a network whose stages end in no ReLU.
    """
    family = family_of(encoder)
    if family.taps is None:
        raise UserError(
            f"{family.kind.__name__} has no map before a ReLU where a stage ends: name the modules whose inputs are to "
            "be matched, or choose another network"
        )
    return family.taps(encoder)

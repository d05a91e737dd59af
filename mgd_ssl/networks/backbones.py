"""Backbones by name: how each is built, where its classifier is, and where its stages are read.

MoCo's projection head takes the place of the classifier, so that the state-dict keys of a ResNet stay the official
ones. Thin ResNets are of the two published block types, for small images.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
import torchvision
from torch import nn
from torchvision.models import ConvNeXt, EfficientNet, MobileNetV2, MobileNetV3, RegNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from mgd_ssl.errors import UserError, nearest
from mgd_ssl.networks.mobilenet_v1 import MobileNetV1
from mgd_ssl.networks.shufflenet_v2 import DeferredShuffleNetV2
from mgd_ssl.networks.stages import (
    Family,
    StageTap,
    depthwise_taps,
    mobilenet_v1_taps,
    mobilenet_v2_taps,
    regnet_taps,
    resnet_taps,
    shufflenet_v2_taps,
)
from mgd_ssl.networks.timm_cnn import TIMM, built_on_cpu, timm_family, timm_network
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


def _vit_taps(network: nn.Module) -> list[StageTap]:
    """The maps that a ViT yields; none before it has met a student's."""
    assert isinstance(network, TokenMaps)
    return [StageTap(f"maps.{stage}", "", network.width, int(stage)) for stage in network.maps]


FAMILIES = [
    Family(ResNet, "fc", "layer1.0.conv1.weight", resnet_taps, ("resne", "wide_resnet", "thin_resnet")),
    Family(MobileNetV1, "fc", "model.1.3.weight", mobilenet_v1_taps, ("mobilenet_v1",)),
    Family(MobileNetV2, "classifier", "features.1.conv.0.0.weight", mobilenet_v2_taps, ("mobilenet_v2",)),
    Family(DeferredShuffleNetV2, "fc", "stage2.0.branch1.0.weight", shufflenet_v2_taps, ("shufflenet_v2",)),
    Family(MobileNetV3, "classifier", "features.1.block.0.0.weight", depthwise_taps, ("mobilenet_v3",)),
    Family(EfficientNet, "classifier", "features.1.0.block.0.0.weight", depthwise_taps, ("efficientnet",)),
    Family(RegNet, "fc", "trunk_output.block1.block1-0.proj.0.weight", regnet_taps, ("regnet",)),
    # its activations see channels last, [N, H, W, C]
    Family(ConvNeXt, "classifier", "features.1.0.block.0.weight", None, ("convnext",)),
    Family(TokenMaps, "head", ANCHOR, _vit_taps, ("vit",)),
]

TORCHVISION = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
]
MORE_OF_TORCHVISION = [
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "convnext_tiny", "convnext_small"),
]
REGNETS = [f"regnet_{kind}_{flops}" for flops in ("400mf", "800mf", "1_6gf", "3_2gf") for kind in ("x", "y")]
MOVED_STRIDE = [
    [1, 16, 1, 1],
    [6, 24, 2, 2],
    [6, 32, 3, 2],
    [6, 64, 4, 1],
    [6, 96, 3, 2],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def _regnet(name: str, **options: Any) -> nn.Module:
    """torchvision works out the widths with tensors, which a meta device would leave without values."""
    return built_on_cpu(lambda: torchvision.models.get_model(name, weights=None, **options))


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(torchvision.models.get_model, name, weights=None) for name in TORCHVISION},
    "thin_resnet10": partial(ThinResNet, BasicBlock, [1, 1, 1, 1], 16),
    "thin_resnet14": partial(ThinResNet, Bottleneck, [1, 1, 1, 1], 16),
    "mobilenet_v1": MobileNetV1,
    **{name: partial(torchvision.models.get_model, name, weights=None) for name in MORE_OF_TORCHVISION},
    **{name: partial(_regnet, name) for name in REGNETS},
    # the one published for CUB: a larger map through four blocks more, and no dropout; weights are mobilenet_v2's
    "mobilenet_v2_moved_stride": partial(MobileNetV2, inverted_residual_setting=MOVED_STRIDE, dropout=0.0),
    "shufflenet_v2_x0_5": partial(DeferredShuffleNetV2, [24, 48, 96, 192, 1024]),
    "shufflenet_v2_x1_0": partial(DeferredShuffleNetV2, [24, 116, 232, 464, 1024]),
}

SAME_SHAPES = ("mobilenet_v2_moved_stride",)  # not to be told from another network by its weights
T = TypeVar("T")


def build_backbone(name: str, num_classes: int | None = None) -> nn.Module:
    """A freshly initialised backbone with its classifier still on.

    Args:
        name: key of `BACKBONES`, or `timm.NAME`.
        num_classes: of the classifier; None: as many as the network usually has.

    Raises:
        UserError: for a name that is neither.
    """
    if name.startswith(TIMM):
        return timm_network(name, num_classes)
    if name not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise UserError(
            f"unknown architecture {name!r}{nearest(name, list(BACKBONES))} (choose one of {known}, or {TIMM}NAME "
            "for a CNN of timm)"
        )
    return BACKBONES[name]() if num_classes is None else BACKBONES[name](num_classes=num_classes)


def anchor_of(name: str) -> str:
    """The key by which the networks of a name's family are told in a file."""
    if name.startswith(TIMM):
        with torch.device("meta"):
            return family_of(build_backbone(name)).anchor
    return next(family.anchor for family in FAMILIES if name.startswith(family.names))


def family_of(network: nn.Module) -> Family:
    """The family of a network that `build_backbone` built."""
    known = (family for family in FAMILIES if isinstance(network, family.kind))
    return next(known, None) or timm_family(network)


def head_of(network: nn.Module) -> nn.Module:
    """Whatever stands where the classifier was built."""
    return network.get_submodule(family_of(network).classifier)


def set_head(network: nn.Module, head: nn.Module) -> None:
    """Put a module where the classifier is: pooled features [N, d] -> anything."""
    network.set_submodule(family_of(network).classifier, head)


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
    shared = within = copy.copy(encoder)
    shared._modules = dict(encoder._modules)  # its own list of the same modules
    for name in family_of(encoder).classifier.split(".")[:-1]:
        inner = within._modules[name] = copy.copy(within.get_submodule(name))
        inner._modules = dict(inner._modules)
        within = inner
    set_head(shared, nn.Identity())
    return shared


def stage_taps(encoder: nn.Module) -> list[StageTap]:
    """Where the stages of a network are read.

    Raises:
        UserError: for a network whose stages end in none.
    """
    family = family_of(encoder)
    if family.taps is None:
        raise UserError(
            f"{family.kind.__name__} has no map before an activation where a stage ends: choose another network, or "
            "distil its logits alone (mgd.weight 0)"
        )
    return family.taps(encoder)

"""Backbones by name: torchvision's ResNets, and thin ones of the same two block types for small images.

`fc` of a backbone is where MoCo's projection head goes, so that the state-dict keys stay the official ones.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from mgd_ssl.errors import UserError, nearest
from moco import projection_head
from moco.keyed import keyed_seed


class ThinResNet(ResNet):
    """torchvision's ResNet with fewer channels and a stem for small images.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks in each of the four stages.
        width: channels of the first stage before the block's expansion (64 in the published networks).

    The stem is one 3x3 convolution of stride 2 in place of 7x7 and max pooling: at 48 pixels the last
    stage still has 3x3 positions.
    """

    def __init__(self, block: type[BasicBlock | Bottleneck], layers: list[int], width: int) -> None:
        super().__init__(block, [1, 1, 1, 1], num_classes=1)
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity()
        for stage, num_blocks in enumerate(layers):
            planes, stride = width * 2**stage, 1 if stage == 0 else 2
            setattr(self, f"layer{stage + 1}", self._make_layer(block, planes, num_blocks, stride=stride))
        self.fc = nn.Linear(8 * width * block.expansion, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


TORCHVISION = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
]

BACKBONES: dict[str, Callable[[], ResNet]] = {
    **{name: partial(torchvision.models.get_model, name, weights=None) for name in TORCHVISION},
    "thin_resnet10": partial(ThinResNet, BasicBlock, [1, 1, 1, 1], 16),
    "thin_resnet14": partial(ThinResNet, Bottleneck, [1, 1, 1, 1], 16),
}


class StageTap(NamedTuple):
    """Where a stage is read: before its last ReLU."""

    relu: str  # module name of the ReLU
    norm: str  # module name of the BatchNorm whose output enters the sum before it
    channels: int


def build_backbone(name: str) -> ResNet:
    """A freshly initialised backbone with its classifier `fc` still on.

    Raises:
        UserError: for a name that is not in `BACKBONES`.
    """
    if name not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise UserError(f"unknown architecture {name!r}{nearest(name, list(BACKBONES))} (choose one of {known})")
    return BACKBONES[name]()


def build_encoder(name: str, dim: int, head_width: int | None = None) -> ResNet:
    """A backbone whose `fc` is MoCo v2's projection head: [N, 3, H, W] -> [N, dim].

    Args:
        name: key of `BACKBONES`.
        dim: size of the embedding.
        head_width: hidden width of the head, the backbone's when None.
    """
    encoder = build_backbone(name)
    encoder.fc = projection_head(encoder.fc.in_features, dim, head_width)
    return encoder


def initial_encoder(name: str, dim: int, head_width: int | None, seed: int) -> ResNet:
    """`build_encoder` with the weights a run of this seed begins with, on the CPU; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "weights"))
        return build_encoder(name, dim, head_width)


def trunk(encoder: ResNet) -> nn.Sequential:
    """The encoder without `fc`, sharing its modules: [N, 3, H, W] -> pooled features [N, d]."""
    return nn.Sequential(*(child for name, child in encoder.named_children() if name != "fc"), nn.Flatten(1))


def stage_taps(encoder: ResNet) -> list[StageTap]:
    """The last block of each of the four stages, as tapped in MGD's experiments (section 4)."""
    taps = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        last = len(getattr(encoder, stage)) - 1
        block = getattr(encoder, stage)[last]
        norm = "bn3" if isinstance(block, Bottleneck) else "bn2"
        taps.append(StageTap(f"{stage}.{last}.relu", f"{stage}.{last}.{norm}", getattr(block, norm).num_features))
    return taps

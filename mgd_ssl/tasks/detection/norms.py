"""Norms of a detector's backbone: frozen BatchNorm, GroupNorm, or BatchNorm as it is."""

import math

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

GROUPS = 32  # https://arxiv.org/abs/1803.08494


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, of fewer where a group would have less than two channels."""
    return nn.GroupNorm(math.gcd(GROUPS, max(1, channels // 2)), channels)


def grouped(norm: nn.BatchNorm2d) -> nn.GroupNorm:
    """GroupNorm with weight and bias of a BatchNorm, whose statistics are dropped."""
    new = group_norm(norm.num_features)
    new.weight.data.copy_(norm.weight.data)
    new.bias.data.copy_(norm.bias.data)
    return new


def frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    """A BatchNorm that learns nothing any more."""
    new = FrozenBatchNorm2d(norm.num_features, norm.eps)
    state = {key: value for key, value in norm.state_dict().items() if key != "num_batches_tracked"}
    new.load_state_dict(state)
    return new


def set_norms(network: nn.Module, kind: str, group_last_blocks: bool) -> None:
    """Replace the BatchNorms of a ResNet.

    Args:
        network: with `layer1` to `layer4`.
        kind: frozen, group or batch.
        group_last_blocks: GroupNorm in the last block of every stage, whatever the kind.
    """
    last = tuple(f"layer{i}.{len(network.get_submodule(f'layer{i}')) - 1}." for i in range(1, 5))  # type: ignore[arg-type]
    for name, norm in list(network.named_modules()):
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        by_group = kind == "group" or (group_last_blocks and name.startswith(last))
        if by_group or kind == "frozen":
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, grouped(norm) if by_group else frozen(norm))

"""Whose file it is: MoCo's, ours, torchvision's; and the plain keys of its backbone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mgd_ssl.errors import UserError
from mgd_ssl.networks.backbones import FAMILIES
from mgd_ssl.networks.plain import check_names
from mgd_ssl.printable import shown

ANCHORS = [family.anchor for family in FAMILIES]  # what stands before one of them is the prefix


def _tensors(checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    state = {key: value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path} holds no tensors by name: pass a checkpoint with a state dict")
    check_names(state, path)
    return state


def _prefix(state: dict[str, Tensor], path: Path, anchors: Sequence[str] = tuple(ANCHORS)) -> str:
    prefixes = [key.removesuffix(anchor) for key in state for anchor in anchors if key.endswith(anchor)]
    queries = [prefix for prefix in prefixes if prefix.endswith("encoder_q.")]  # MoCo: not the EMA encoder
    chosen = queries or prefixes
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise UserError(
            f"{path} holds no ResNet (no key ends in {ANCHORS[0]!r}) and no other network that is known by name: "
            "pass a checkpoint of one, or the name of its network (timm.NAME)"
        )
    several = ", ".join(repr(shown(name)) for name in chosen[:MOST_TOLD])
    raise UserError(f"{path} holds several networks ({several}): save the one you want alone")


def _group(key: str) -> str:
    """`module.encoder_k.layer1.0.conv1.weight` -> `encoder_k`."""
    parts = key.split(".")
    return parts[1] if parts[0] == "module" and len(parts) > 1 else parts[0]


MOST_TOLD = 10  # groups of tensors that are not used

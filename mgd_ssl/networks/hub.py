"""Names of transformers' ResNets and ViTs (https://github.com/huggingface/transformers, models/resnet, vit, dinov2)
made those of torchvision and timm."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgd_ssl.errors import UserError
from mgd_ssl.printable import shown

RESNET, VIT = "embedder.embedder.convolution.weight", "embeddings.patch_embeddings.projection.weight"
RESNET_NAMES = (
    (r"embedder\.embedder\.convolution\.", "conv1."),
    (r"embedder\.embedder\.normalization\.", "bn1."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.", "layer{0}.{1}.conv{2}."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization\.", "layer{0}.{1}.bn{2}."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution\.", "layer{0}.{1}.downsample.0."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization\.", "layer{0}.{1}.downsample.1."),
)
RESNET_AS = {  # what torchvision's networks do
    "hidden_act": "relu", "downsample_in_bottleneck": False, "downsample_in_first_stage": False, "num_channels": 3
}  # fmt: skip
VIT_NAMES = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.register_tokens", "register_tokens"),  # as DINOv2 calls them
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", "blocks.{0}.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", "blocks.{0}.ls{1}.gamma"),
    (r"encoder\.layer\.(\d+)\.(norm\d|mlp\.fc\d)\.", "blocks.{0}.{1}."),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.", "blocks.{0}.norm1."),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.", "blocks.{0}.norm2."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", "blocks.{0}.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", "blocks.{0}.mlp.fc2."),
    (r"layernorm\.", "norm."),
)
ATTENTION = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)")


def plain_names(state: Mapping[str, Tensor], hub: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors under torchvision's or timm's names, and whose names they were; as they are if not transformers'.

    Args:
        state: of the file.
        hub: config.json beside it; empty without one.
        path: of the file, for errors.

    Raises:
        UserError: without a config.json, which says what the names do not, or for a network that computes otherwise.
    """
    for anchor, convert, name in ((RESNET, _resnet, "transformers ResNet"), (VIT, _vit, "transformers ViT")):
        prefixes = [key.removesuffix(anchor) for key in state if key.endswith(anchor)]
        if len(prefixes) == 1:
            if not hub:
                raise UserError(
                    f"{path} has transformers' names and no config.json lies beside it, which says how its network "
                    "computes: download the whole folder, and pass it"
                )
            return convert({key.removeprefix(prefixes[0]): value for key, value in state.items()}, hub, path), name
    return dict(state), ""


def _resnet(state: Mapping[str, Tensor], hub: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    for key, value in RESNET_AS.items():
        if hub.get(key, value) != value:
            raise UserError(
                f"{path.with_name('config.json')} says {key} {shown(hub[key])}, and torchvision's ResNets have "
                f"{value}: choose another teacher"
            )
    named = _renamed(state, RESNET_NAMES, first=1)
    return {name.replace("classifier.1.", "fc."): value for name, value in named.items()}


def _vit(state: Mapping[str, Tensor], hub: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    if hub.get("hidden_act", "gelu") != "gelu" or hub.get("use_swiglu_ffn"):
        raise UserError(
            f"{path.with_name('config.json')} says hidden_act {shown(hub.get('hidden_act'))}, use_swiglu_ffn "
            f"{shown(hub.get('use_swiglu_ffn'))}, which is not converted: take the same network from timm"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, value in state.items():
        if found := ATTENTION.fullmatch(name):
            parts.setdefault(f"blocks.{found[1]}.attn.qkv.{found[3]}", {})[found[2]] = value
        else:
            rest[name] = value
    whole = _renamed(rest, VIT_NAMES, first=0)
    for name, part in parts.items():
        if part.keys() != {"query", "key", "value"}:
            raise UserError(f"{path} lacks a part of {name} (it has {', '.join(part)}): copy or download it again")
        whole[name] = torch.cat([part["query"], part["key"], part["value"]])
    return whole


def _renamed(state: Mapping[str, Tensor], names: tuple[tuple[str, str], ...], first: int) -> dict[str, Tensor]:
    """Numbers are counted from `first` in stages and layers; blocks are counted from 0 in both."""
    renamed = {}
    for name, value in state.items():
        for pattern, new in names:
            if found := re.match(pattern, name):
                numbers = [
                    str(int(text) + first) if text.isdigit() and (first and place != 1) else text
                    for place, text in enumerate(found.groups())
                ]
                renamed[new.format(*numbers) + name[found.end() :]] = value
                break
        else:
            renamed[name] = value
    return renamed

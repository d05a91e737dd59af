"""ViTs of timm (extra `timm`) as teachers: a pooled feature, and the grid of patch tokens as maps."""

import math
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.errors import UserError, nearest
from mgd_ssl.printable import shown

ANCHOR = "patch_embed.proj.weight"  # a tensor that every ViT of timm has
UNUSED = ("head", "fc", "classifier", "mask_token", "pooler", "rope_embed")  # first words of what a backbone has not
HEAD_WIDTH = 64  # channels of an attention head, in all ViTs that are told from their shapes
STRETCH = math.sqrt(2)  # of the teacher's images at most, that its grid becomes a student's map


class TokenMaps(nn.Module):
    """A ViT that takes images of any size: [N, 3, H, W] -> pooled feature [N, d].

    Its maps, [N, d, h, w], are the patch tokens after the last norm; each goes through a module `maps.STAGE`, where it
    can be tapped. They have no ReLU behind them: margins are measured.

    Args:
        vit: of timm, without a classifier.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit, self.head, self.maps = vit, nn.Identity(), nn.ModuleDict()
        self.patch, self.width = int(vit.patch_embed.patch_size[0]), int(vit.num_features)
        self.grid_per_pixel = 1 / self.patch
        self.halved: set[str] = set()  # maps with half of the grid's edge

    def forward(self, images: Tensor) -> Tensor:
        """The feature that timm pools, after yielding the maps to their taps."""
        edge = [self.patch * max(1, round(length * self.grid_per_pixel)) for length in images.shape[2:]]
        if edge != list(images.shape[2:]):
            images = F.interpolate(images, edge, mode="bicubic", antialias=True)
        last = len(self.vit.blocks) - 1
        blocks = [last] if len(self.maps) < 2 else [last * 2 // 3, last]  # the finer map is of an earlier block
        tokens, maps = self.vit.forward_intermediates(images, indices=blocks, norm=True, output_fmt="NCHW")
        for (name, tap), map_ in zip(self.maps.items(), maps, strict=False):
            if name in self.halved:
                map_ = F.adaptive_avg_pool2d(map_, (-(-map_.shape[2] // 2), -(-map_.shape[3] // 2)))
            tap(map_)
        feature: Tensor = self.head(self.vit.forward_head(tokens, pre_logits=True))
        return feature

    def meet(self, sizes: Mapping[int, int], image_size: int) -> list[int]:
        """Make the grid as large as the map of a student's stage, by resizing the teacher's images.

        The stage whose map is nearest to the grid is met, and the one after it, if its map is half as large, by
        averaging 2 x 2 tokens.

        Args:
            sizes: edge of the student's map a stage.
            image_size: edge of the images.

        Returns:
            The stages that have a map from now on.

        Raises:
            UserError: when no stage's map is within a factor of 1.41 of the grid.
        """
        natural = image_size / self.patch
        stage = min(sizes, key=lambda each: abs(math.log(sizes[each] / natural)))
        edge = sizes[stage]
        if not 1 / STRETCH <= edge / natural <= STRETCH or edge < 2:
            told = ", ".join(f"{size} x {size}" for size in sizes.values())
            raise UserError(
                f"the teacher's {self.patch}-pixel patches are a grid of {natural:.3g} x {natural:.3g} at "
                f"data.image_size {image_size}, and the student's stages have maps of {told}, none of which is near: "
                "choose another image size, student or teacher, or leave MGD out"
            )
        self.grid_per_pixel = edge / image_size
        met = [stage]
        if sizes.get(stage + 1) == math.ceil(edge / 2) > 1:
            met.append(stage + 1)
        self.maps = nn.ModuleDict({str(each): nn.Identity() for each in met})
        self.halved = {str(each) for each in met[1:]}
        return met


def load_vit(state: dict[str, Tensor], arch: str | None, hub: Mapping[str, Any], path: Path) -> tuple[TokenMaps, str]:
    """A ViT from its tensors, strictly, and what it is called.

    Args:
        state: names of timm, of DINO's programs or as `plain_names` makes them.
        arch: a model of timm, with or without a tag; None: told from the folder or the shapes.
        hub: config.json beside the file; empty without one.
        path: of the file, for errors.

    Raises:
        UserError: when timm is missing, or the tensors do not fit.
    """
    try:
        import timm  # noqa: F401
    except ImportError as error:
        raise UserError(f"{path} holds a ViT, for which timm is needed: pip install 'mgd_ssl[timm]'") from error
    arch = arch or hub.get("architecture")
    if arch is None and "pos_embed" not in state:
        raise UserError(
            f"{path} holds a ViT without learnt positions, whose shapes do not tell what it is: pass its name in timm "
            "as --teacher-arch, vit_small_patch16_dinov3, say"
        )
    vit = _named(str(arch), state, path) if arch else _told_by_shapes(state, hub, path)
    arch = str(arch or f"vit_{vit.embed_dim}x{len(vit.blocks)}_patch{vit.patch_embed.patch_size[0]}")
    wanted = {name: value.shape for name, value in vit.state_dict().items()}
    converted = _converted(state, vit, path)
    found = {name: value for name, value in converted.items() if name in wanted or name.split(".")[0] not in UNUSED}
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{shown(name)} does not belong to it" for name in found if name not in wanted]
    faults += [
        f"{shown(name)} is {list(value.shape)}, not {list(wanted[name])}"
        for name, value in found.items()
        if name in wanted and value.shape != wanted[name]
    ]
    if faults:
        raise UserError(
            f"{path} does not fit {shown(arch)}: {len(faults)} tensors are at fault (first: {faults[0]}): "
            "pass --teacher-arch with the name its network has in timm"
        )
    vit.load_state_dict(found)
    return TokenMaps(vit), arch


def input_of(arch: str) -> tuple[Any, Any, str | None]:
    """Mean, deviation and licence that timm knows of a name with a tag, `vit_small_patch14_dinov2.lvd142m`."""
    import timm

    config = timm.models.get_pretrained_cfg(arch.removeprefix("timm:")) if "." in arch else None
    return (config.mean, config.std, config.license) if config is not None else (None, None, None)


def _named(arch: str, state: Mapping[str, Tensor], path: Path) -> Any:
    import timm

    name = arch.removeprefix("timm:")
    if not timm.is_model(name):
        near = nearest(name.split(".")[0], timm.list_models("vit_*"))
        raise UserError(f"timm has no model {shown(name)}{near}: see timm.list_models()")
    size = _image_size(state, path)
    known: dict[str, Any] = {"img_size": size} if size else {}
    try:
        return timm.create_model(name, num_classes=0, dynamic_img_size=True, **known)
    except TypeError as error:
        raise UserError(f"timm's {shown(name)} is no ViT for images of any size: choose another teacher") from error


def _told_by_shapes(state: Mapping[str, Tensor], hub: Mapping[str, Any], path: Path) -> Any:
    """A plain ViT, or DINOv2's with layer scale and registers; heads and epsilon are those of a config, or usual."""
    from timm.models import VisionTransformer

    if (hidden := state.get("blocks.0.mlp.fc1.weight")) is None or "norm.weight" not in state:
        raise UserError(
            f"{path} holds a ViT whose shapes do not tell its kind: pass its name in timm as --teacher-arch"
        )
    projection = state[ANCHOR]
    width, registers = projection.shape[0], state.get("reg_token", state.get("register_tokens"))
    return VisionTransformer(
        img_size=_image_size(state, path) or 0,
        patch_size=projection.shape[-1],
        embed_dim=width,
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        num_heads=int(hub.get("num_attention_heads", max(1, width // HEAD_WIDTH))),
        mlp_ratio=hidden.shape[0] / width,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        init_values=1.0 if "blocks.0.ls1.gamma" in state else None,
        reg_tokens=0 if registers is None else registers.shape[1],
        no_embed_class=registers is not None,
        norm_layer=partial(nn.LayerNorm, eps=float(hub.get("layer_norm_eps", 1e-6))),
        num_classes=0,
        dynamic_img_size=True,
    )


def _image_size(state: Mapping[str, Tensor], path: Path) -> int | None:
    """Edge of the images that the learnt positions are for, None without any."""
    positions, projection = state.get("pos_embed"), state[ANCHOR]
    if positions is None or positions.ndim != 3 or projection.ndim != 4:
        return None
    tokens = positions.shape[1]
    edge = next((math.isqrt(n) for n in (tokens, tokens - 1, tokens - 2) if math.isqrt(n) ** 2 == n), None)
    if edge is None:
        raise UserError(f"{path} holds a ViT with {tokens} positions, which are no square: choose another teacher")
    return edge * int(projection.shape[-1])


@torch.no_grad()
def _converted(state: dict[str, Tensor], vit: Any, path: Path) -> dict[str, Tensor]:
    """The names that timm gives them: its own conversion, which knows DINO's, DINOv2's and DINOv3's files."""
    convert = getattr(sys.modules[type(vit).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    state = dict(state)
    if "register_tokens" in state:
        state.setdefault("mask_token", state["register_tokens"][:, 0])  # by which timm tells DINOv2's files
    try:
        return dict(convert(state, vit))
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} cannot be made a ViT of timm ({why}): pass its name there as --teacher-arch"
        ) from error

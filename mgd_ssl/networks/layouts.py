"""Whose file it is: MoCo's, ours, SwAV's, DINO's, torchvision's, ...; and where in it the backbone and its head are.

The layouts are those of the programs that wrote the files; each names its source. Only names of tensors are looked at.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mgd_ssl.errors import UserError
from mgd_ssl.printable import shown

MOST_TOLD = 10  # groups of tensors that are not used
CONTAINERS = (  # keys under which programs save what they trained, the one to be used first
    "state_dict",  # MoCo, timm, torchvision's references, SimCLR's converter, ours
    "model",  # MAE, Barlow Twins, VICReg; inside VISSL's
    "teacher",  # DINO: the average of the student beside it, which is the better one
    "online_backbone",  # BYOL
    "classy_state_dict",  # VISSL: classy_state_dict, base_model, model, trunk
    "base_model",
    "trunk",
)


class Layout(NamedTuple):
    """How the names of a program's tensors are made up: START PREFIX name-of-the-plain-network."""

    name: str
    prefix: str  # `encoder_q.`
    told: str  # for `mgd-ssl teachers`
    source: str  # where the layout was looked up
    mark: str = ""  # START MARK begins another tensor of such a file
    head: str = ""  # START HEAD begins the projection head
    beside: tuple[str, ...] = ()  # prefixes of other networks of such a file, which are not used
    inside: tuple[str, ...] = ()  # PREFIX INSIDE begins tensors that are none of the backbone's
    gelu: bool = False  # between the layers of the head; else ReLU


LAYOUTS = (
    Layout(
        "MoCo v1/v2",
        "encoder_q.",
        "the query encoder of a whole checkpoint, projection head `fc`; checkpoints of our own runs",
        "https://github.com/facebookresearch/moco (moco/builder.py)",
        head="encoder_q.fc.",
        beside=("encoder_k.",),
    ),
    Layout(
        "MoCo v3",
        "base_encoder.",
        "the base encoder of a whole checkpoint, projection head `fc`",
        "https://github.com/facebookresearch/moco-v3 (moco/builder.py)",
        head="base_encoder.fc.",
        beside=("momentum_encoder.",),
    ),
    Layout(
        "DINO",
        "backbone.",
        "the teacher of a full checkpoint, projection head `head.mlp`; a backbone alone is a plain file",
        "https://github.com/facebookresearch/dino (main_dino.py, vision_transformer.py)",
        mark="head.mlp.",
        head="head.mlp.",
        gelu=True,
    ),
    Layout(
        "Barlow Twins, VICReg",
        "backbone.",
        "the backbone of a full checkpoint, projection head `projector`; solo-learn's too; a backbone alone is a plain "
        "file",
        "https://github.com/facebookresearch/barlowtwins (main.py), https://github.com/facebookresearch/vicreg",
        mark="projector.",
        head="projector.",
        beside=("momentum_backbone.",),
    ),
    Layout(
        "SimSiam",
        "encoder.",
        "the encoder of a whole checkpoint, projection head `fc`",
        "https://github.com/facebookresearch/simsiam (simsiam/builder.py)",
        mark="predictor.",
        head="encoder.fc.",
    ),
    Layout(
        "SwAV",
        "",
        "the network of a checkpoint, projection head `projection_head`; DeepCluster-v2's and SeLa-v2's too",
        "https://github.com/facebookresearch/swav (src/resnet50.py)",
        mark="projection_head.",
        head="projection_head.",
        inside=("projection_head.", "prototypes."),
    ),
    Layout(
        "VISSL",
        "_feature_blocks.",
        "the trunk of a checkpoint",
        "https://github.com/facebookresearch/vissl",
    ),
)
PLAIN = Layout(
    "plain",
    "",
    "a state dict with torchvision's or timm's names under any prefix: torchvision, timm, our encoder.pt, backbones "
    "alone of DINO, Barlow Twins and VICReg, converted SimCLR and BYOL",
    "https://github.com/pytorch/vision, https://github.com/huggingface/pytorch-image-models",
)
WHY_NOT = {  # of groups of tensors that are not used
    "encoder_k": "the momentum copy",
    "momentum_encoder": "the momentum copy",
    "momentum_backbone": "the momentum copy",
    "student": "the network that the teacher averages",
    "queue": "negative keys",
    "queue_ptr": "negative keys",
    "predictor": "used in its training alone",
    "prototypes": "cluster centres",
    "projector": "projection head",
    "projection_head": "projection head",
    "momentum_projector": "projection head of the momentum copy",
    "head": "projection head",
    "fc": "classifier or projection head",
    "encoder_q": "projection head",
    "base_encoder": "projection head",
    "encoder": "projection head",
    "classifier": "classifier",
    "mask_token": "used in its training alone",
    "pooler": "used in its training alone",
}


class Found(NamedTuple):
    """Where a backbone and its projection head are in a state dict."""

    layout: Layout
    prefix: str  # of the backbone's names
    head: str  # of the projection head's; empty: there is none


def innermost(checkpoint: Mapping[Any, Any], is_tensor: type) -> tuple[Mapping[Any, Any], dict[str, int]]:
    """The dictionary with the network in whatever wraps it, and what else lay on the way: name -> number of tensors.

    Args:
        checkpoint: of a file.
        is_tensor: the class of its tensors.
    """
    others: dict[str, int] = {}
    while name := next((name for name in CONTAINERS if isinstance(checkpoint.get(name), Mapping)), None):
        for other, value in checkpoint.items():
            if other != name and isinstance(other, str) and isinstance(value, Mapping):
                count = sum(isinstance(each, is_tensor) for each in value.values())
                others |= {other: count} if count else {}
        checkpoint = checkpoint[name]
    return checkpoint, others


def locate(names: Collection[str], anchors: Iterable[str], path: Path) -> Found:
    """Where the backbone is among the names of a file's tensors.

    Args:
        names: of all tensors.
        anchors: names that every network of some family has.
        path: of the file, for errors.

    Raises:
        UserError: when no network is known by these names, or several are.
    """
    anchors = list(anchors)
    prefixes = list(dict.fromkeys(n.removesuffix(a) for n in names for a in anchors if _ends_with(n, a)))
    if not prefixes:
        raise UserError(
            f"{path} holds no ResNet (no key ends in {anchors[0]!r}) and no other network that is known by name: "
            "pass a checkpoint of one, or the name of its network (timm.NAME)"
        )
    for layout in LAYOUTS:
        chosen = [prefix for prefix in prefixes if _ends_with(prefix, layout.prefix)]
        others = [prefix for prefix in prefixes if any(_ends_with(prefix, beside) for beside in layout.beside)]
        if len(chosen) != 1 or len(prefixes) > 1 + len(others):
            continue
        start = chosen[0].removesuffix(layout.prefix)
        if layout.mark and not any(name.startswith(start + layout.mark) for name in names):
            continue
        if not layout.mark and not layout.prefix:
            continue
        head = start + layout.head if layout.head else ""
        return Found(layout, chosen[0], head if head and any(name.startswith(head) for name in names) else "")
    if len(prefixes) > 1:
        several = ", ".join(repr(shown(prefix)) for prefix in prefixes[:MOST_TOLD])
        raise UserError(f"{path} holds several networks ({several}): save the one you want alone")
    return Found(PLAIN, prefixes[0], "")


def group(name: str) -> str:
    """`module.encoder_k.layer1.0.conv1.weight` -> `encoder_k`."""
    parts = name.split(".")
    return parts[1] if parts[0] == "module" and len(parts) > 1 else parts[0]


def told_unused(unused: Mapping[str, int]) -> str:
    """`encoder_k (267: the momentum copy), queue (1: negative keys)`."""
    told = [
        f"{shown(name)} ({count}{': ' + WHY_NOT[name] if name in WHY_NOT else ''})" for name, count in unused.items()
    ]
    more = f" and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    return ", ".join(told[:MOST_TOLD]) + more or "nothing"


def _ends_with(name: str, end: str) -> bool:
    """Whether a dotted name ends in whole words so."""
    return name == end or name.endswith(f".{end}") or not end

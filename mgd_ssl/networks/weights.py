"""Load a backbone's weights from any usual checkpoint: strictly, safely, with an account of what was done."""

import hashlib
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mgd_ssl.errors import UserError
from mgd_ssl.files import read_json
from mgd_ssl.networks.backbones import (
    BACKBONES,
    SAME_SHAPES,
    anchor_of,
    build_backbone,
    family_of,
    head_of,
    num_classes_of,
    set_head,
    without_head,
)
from mgd_ssl.networks.layouts import ANCHORS, MOST_TOLD, _group, _prefix, _tensors
from mgd_ssl.networks.plain import casts, check_plain, check_values
from mgd_ssl.networks.timm_cnn import TIMM
from mgd_ssl.printable import shown
from mgd_ssl.run.checkpoint import parsed, read_torch_file

OPTIONAL = "num_batches_tracked"  # absent from checkpoints older than torch 0.4.1, and without influence


class LoadReport(NamedTuple):
    """How the keys of a file were mapped to a backbone."""

    path: Path
    sha256: str
    arch: str
    prefix: str  # stripped from the file's keys
    num_loaded: int  # tensors of the backbone
    unused: dict[str, int]  # what else the file holds: first part of the key -> number of tensors
    cast: tuple[tuple[str, int], ...] = ()  # types that became float32, and how many tensors
    untrained_seed: int | None = None  # of weights drawn at random; None: they are the file's
    classes: int | None = None  # of the classifier that was loaded with it

    def __str__(self) -> str:
        if self.untrained_seed is not None:
            return f"{self.path}: an untrained {self.arch}, weights of seed {self.untrained_seed}"
        counts = [f"{shown(name)} ({count})" for name, count in self.unused.items()]
        more = f" and {len(counts) - MOST_TOLD} more" if len(counts) > MOST_TOLD else ""
        unused = ", ".join(counts[:MOST_TOLD]) + more or "nothing"
        cast = "".join(f"; {count} of them cast from {kind} to float32" for kind, count in self.cast)
        return (
            f"{self.path}: {self.num_loaded} tensors -> {self.arch}{cast} "
            f"(prefix {self.prefix!r} stripped; not used: {unused}; sha256 {self.sha256[:12]})"
        )


def load_backbone(path: Path, arch: str | None = None, with_classifier: bool = False) -> tuple[nn.Module, LoadReport]:
    """A trained backbone from a file: MoCo's checkpoints, ours, or a plain torchvision state dict.

    Every tensor of the backbone but the classifier must be there with its shape, dense, of floating point and finite
    in float32, which it is cast to; the BatchNorms must have seen data, and their variances may not be negative.

    Args:
        path: of the file.
        arch: key of `BACKBONES`; told from the shapes when None.
        with_classifier: keep the file's classifier, if it has one of whatever number of classes.

    Returns:
        The backbone with its classifier removed (an identity) unless it was kept, and how its keys were mapped.

    Raises:
        UserError: naming the file, the first tensor at fault and the remedy.
    """
    content = read_torch_file(path)
    state = _tensors(parsed(content, path), path)
    arch = arch or _named_beside(path)
    prefix = _prefix(state, path, ANCHORS if arch is None else [*ANCHORS, anchor_of(arch)][-1:])
    whole = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    arch = arch or _fitting_arch(whole, path)
    backbone = _for_classes(arch, whole, path) if with_classifier and not prefix.endswith("encoder_q.") else None
    classes = None if backbone is None else num_classes_of(backbone)
    if backbone is None:
        backbone = build_backbone(arch)
        set_head(backbone, nn.Identity())
    found = whole if classes else without_head(backbone, whole)
    check_plain(found, path)

    _check_fits(found, _shapes(arch) if classes is None else _shapes_of(backbone), arch, path)
    _check_trained(found, path)
    missing, unexpected = backbone.load_state_dict(found, strict=False)
    assert not unexpected and all(key.endswith(OPTIONAL) for key in missing)  # _check_fits has seen to it

    others = (key for key in state if key.removeprefix(prefix) not in found)
    unused = Counter(_group(key) for key in others)
    sha256 = hashlib.sha256(content).hexdigest()
    report = LoadReport(path, sha256, arch, prefix, len(found), dict(unused), casts(found), classes=classes)
    return backbone, report


def _for_classes(arch: str, whole: dict[str, Tensor], path: Path) -> nn.Module | None:
    """A network with a classifier of as many classes as that of a file, None where the file has no such classifier."""
    usual = _without_values(arch)
    name = family_of(usual).classifier
    head = {key: value for key, value in whole.items() if key.startswith(f"{name}.")}
    last = list(head_of(usual).state_dict(prefix=f"{name}."))[-1]  # bias of the last layer
    if head.keys() != head_of(usual).state_dict(prefix=f"{name}.").keys() or head[last].ndim != 1:
        return None
    return build_backbone(arch, len(head[last]))


def md5_of(path: Path) -> str:
    """Hex digest of a file by which the MoCo project names its own."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


@cache
def _without_values(arch: str) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(arch)


@cache
def _shapes(arch: str) -> dict[str, torch.Size]:
    backbone = _without_values(arch)
    return without_head(backbone, _shapes_of(backbone))


def _shapes_of(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def _named_beside(path: Path) -> str | None:
    """The network of the run a file belongs to, where shapes do not tell it."""
    for folder in (path.parent, path.parent.parent):  # of encoder.pt, of checkpoints/step_*.pt
        if (folder / "config.json").is_file():
            student = str(read_json(folder / "config.json").get("config", {}).get("student"))
            return student if student.startswith(TIMM) or student in SAME_SHAPES else None
    return None


def _fitting_arch(whole: dict[str, Tensor], path: Path) -> str:
    """The architecture whose tensors, the classifier's left out, have these shapes."""

    def mismatches(arch: str) -> int:
        shapes = {key: value.shape for key, value in without_head(_without_values(arch), whole).items()}
        return len([k for k, _ in _shapes(arch).items() ^ shapes.items() if not k.endswith(OPTIONAL)])

    best = min([arch for arch in BACKBONES if anchor_of(arch) in whole], key=mismatches)
    if mismatches(best):
        found = without_head(_without_values(best), whole)
        check_plain(found, path)
        _check_fits(found, _shapes(best), best, path)
    return best


def _check_fits(found: dict[str, Tensor], wanted: dict[str, torch.Size], arch: str, path: Path) -> None:
    missing = [key for key in wanted if key not in found and not key.endswith(OPTIONAL)]
    unexpected = [key for key in found if key not in wanted]
    reshaped = [key for key in found if key in wanted and found[key].shape != wanted[key]]
    if not (missing or unexpected or reshaped):
        return
    faults = [
        f"{len(missing)} tensors are missing (first: {missing[0]})" if missing else "",
        f"{len(unexpected)} do not belong to it (first: {shown(unexpected[0])})" if unexpected else "",
        f"{len(reshaped)} have another shape (first: {shown(reshaped[0])} is {list(found[reshaped[0]].shape)}, "
        f"not {list(wanted[reshaped[0]])})"
        if reshaped
        else "",
    ]
    raise UserError(
        f"{path} does not fit {arch}: {'; '.join(filter(None, faults))}: "
        "pass the architecture the file was trained with, or a whole checkpoint"
    )


def _check_trained(found: dict[str, Tensor], path: Path) -> None:
    check_values(found, path)
    means = [value for key, value in found.items() if key.endswith("running_mean")]
    if means and all(not value.any() for value in means):
        raise UserError(f"{path} was never trained (every BatchNorm's running mean is 0): pass a trained checkpoint")

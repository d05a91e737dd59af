"""Load a backbone's weights from any usual checkpoint: strictly, safely, with an account of what was done."""

import hashlib
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.resnet import ResNet

from mgd_ssl.errors import UserError
from mgd_ssl.networks.backbones import BACKBONES, build_backbone
from mgd_ssl.networks.layouts import MOST_TOLD, _group, _prefix, _tensors
from mgd_ssl.networks.plain import casts, check_plain, check_values
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


def load_backbone(path: Path, arch: str | None = None) -> tuple[ResNet, LoadReport]:
    """A trained backbone from a file: MoCo's checkpoints, ours, or a plain torchvision state dict.

    Every tensor of the backbone but the classifier must be there with its shape, dense, of floating point and finite
    in float32, which it is cast to; the BatchNorms must have seen data, and their variances may not be negative.

    Args:
        path: of the file.
        arch: key of `BACKBONES`; told from the shapes when None.

    Returns:
        The backbone with `fc` removed (an identity), and how its keys were mapped.

    Raises:
        UserError: naming the file, the first tensor at fault and the remedy.
    """
    content = read_torch_file(path)
    state = _tensors(parsed(content, path), path)
    prefix = _prefix(state, path)
    found = {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(prefix) and not key.removeprefix(prefix).startswith("fc.")
    }
    check_plain(found, path)
    arch = arch or _fitting_arch(found, path)
    backbone = build_backbone(arch)
    backbone.fc = torch.nn.Identity()

    _check_fits(found, _shapes(arch), arch, path)
    _check_trained(found, path)
    missing, unexpected = backbone.load_state_dict(found, strict=False)
    assert not unexpected and all(key.endswith(OPTIONAL) for key in missing)  # _check_fits has seen to it

    others = (key for key in state if key.removeprefix(prefix) not in found)
    unused = Counter(_group(key) for key in others)
    sha256 = hashlib.sha256(content).hexdigest()
    report = LoadReport(path, sha256, arch, prefix, len(found), dict(unused), casts(found))
    return backbone, report


def md5_of(path: Path) -> str:
    """Hex digest of a file by which the MoCo project names its own."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


@cache
def _shapes(arch: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {k: v.shape for k, v in build_backbone(arch).state_dict().items() if not k.startswith("fc.")}


def _fitting_arch(found: dict[str, Tensor], path: Path) -> str:
    shapes = {key: value.shape for key, value in found.items()}

    def mismatches(arch: str) -> int:
        return len([k for k, _ in _shapes(arch).items() ^ shapes.items() if not k.endswith(OPTIONAL)])

    best = min(BACKBONES, key=mismatches)
    if mismatches(best):
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

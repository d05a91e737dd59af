"""Load a backbone's weights from any usual checkpoint: strictly, safely, with an account of what was done."""

import hashlib
import io
import os
import pickle
import warnings
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.resnet import ResNet

from mgd_ssl.errors import UserError
from mgd_ssl.networks.backbones import BACKBONES, build_backbone
from mgd_ssl.networks.plain import casts, check_names, check_plain, check_values, shown
from mgd_ssl.run.zip_records import CompressedError, check_records

ANCHOR = "layer1.0.conv1.weight"  # every ResNet has it, so what stands before it is the prefix
OPTIONAL = "num_batches_tracked"  # absent from checkpoints older than torch 0.4.1, and without influence
MOST_TOLD = 10  # groups of tensors that are not used
MAGICS = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # first bytes of what torch.save writes: now, and before torch 1.6


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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint file as a dictionary on the CPU, without running any code it may carry.

    Raises:
        UserError: when the file is missing, truncated or damaged (its checksums say so), no checkpoint, or needs more
            than tensors and builtins.
    """
    return parsed(read_torch_file(path), path)


def read_torch_file(path: Path) -> bytes:
    """The bytes of a file torch.save wrote, held against their checksums; read once, whatever is done with them.

    Raises:
        UserError: when there is no such file, it cannot be read, is something else, or damaged.
    """
    if not os.path.isfile(path):  # not Path.is_file, which raises for some names
        raise UserError(f"{path} is not a file: pass the path of a checkpoint")
    try:
        with path.open("rb") as file:
            head = file.read(4)
            if not any(magic.startswith(head) for magic in MAGICS):
                raise UserError(f"{path} is no torch checkpoint: pass a file written by torch.save")
            content = head + file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    try:
        check_records(content)
    except CompressedError as error:
        raise UserError(
            f"{path} holds compressed records (first: {shown(str(error))}), which torch.save does not write: load it "
            "where you trust it, and save it again with torch.save"
        ) from error
    except ValueError as error:
        raise damaged(path) from error
    return content


def parsed(content: bytes, path: Path) -> dict[str, Any]:
    """The dictionary in the bytes of a file, whose path is named in errors.

    Raises:
        UserError: as `read_checkpoint` says.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about what odd files hold
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the reader raise anything: IndexError, struct.error, OSError, ...
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(
                f"{path} holds Python objects besides tensors, which could run code when they are loaded, so it is "
                "refused: save its state dict alone with torch.save(model.state_dict(), ...) where you trust it"
            ) from error
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript archive: save the state dict of its network") from error
        raise damaged(path) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a dictionary of weights: save a state dict")
    return checkpoint


def damaged(path: Path) -> UserError:
    """What to tell of a file that is not what was written."""
    if path.name == "encoder.pt" and path.with_name("config.json").is_file():
        return UserError(f"{path} is truncated or damaged: run the command of its run again, which makes it anew")
    return UserError(f"{path} is truncated or damaged: copy or download it again")


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


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5_of(path: Path) -> str:
    """Hex digest of a file by which the MoCo project names its own."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


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


def _prefix(state: dict[str, Tensor], path: Path) -> str:
    prefixes = [key.removesuffix(ANCHOR) for key in state if key.endswith(ANCHOR)]
    queries = [prefix for prefix in prefixes if prefix.endswith("encoder_q.")]  # MoCo: not the EMA encoder
    chosen = queries or prefixes
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise UserError(f"{path} holds no ResNet (no key ends in {ANCHOR!r}): pass a ResNet's checkpoint")
    several = ", ".join(repr(shown(name)) for name in chosen[:MOST_TOLD])
    raise UserError(f"{path} holds several networks ({several}): save the one you want alone")


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


def _group(key: str) -> str:
    """`module.encoder_k.layer1.0.conv1.weight` -> `encoder_k`."""
    parts = key.split(".")
    return parts[1] if parts[0] == "module" and len(parts) > 1 else parts[0]

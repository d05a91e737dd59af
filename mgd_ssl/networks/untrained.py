"""Encoders that were never trained, as a baseline: `random:resnet18` and `random:resnet18:SEED` in place of a file."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from torch import nn

from mgd_ssl.errors import UserError, nearest
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import BACKBONES, initial_encoder, set_head
from mgd_ssl.networks.timm_cnn import TIMM
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.run.folder import find_weights
from mgd_ssl.run.lock import UNTRAINED


class Untrained(NamedTuple):
    """A backbone with the weights that a run of this seed begins with."""

    arch: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{UNTRAINED}{self.arch}:{self.seed}"

    @property
    def suffix(self) -> str:
        """For names of files: results of it must not take the place of a trained encoder's."""
        return f"_random_{self.arch}_{self.seed}"


def untrained(checkpoint: Path) -> Untrained | None:
    """The encoder that `random:ARCH` or `random:ARCH:SEED` asks for, None for a path.

    Raises:
        UserError: for an architecture that is not known, or a seed that is none.
    """
    text = str(checkpoint)
    if not text.startswith(UNTRAINED):
        return None
    arch, colon, seed = text.removeprefix(UNTRAINED).partition(":")
    if arch not in BACKBONES and not arch.startswith(TIMM):
        raise UserError(
            f"{text}: unknown architecture {arch!r}{nearest(arch, list(BACKBONES))}: pass random:resnet18, say"
        )
    if colon and not (seed.isascii() and seed.isdigit() and len(seed) < 19):
        raise UserError(f"{text}: the seed {seed!r} is no whole number from 0 on: pass random:{arch}:0, say")
    return Untrained(arch, int(seed or 0))


def find_evaluated(checkpoint: Path) -> Path:
    """`find_weights`, where `random:ARCH:SEED` stays as it is, its seed filled in."""
    chosen = untrained(checkpoint)
    return find_weights(checkpoint) if chosen is None else Path(str(chosen))


def load_evaluated(path: Path, arch: str | None = None) -> tuple[nn.Module, LoadReport]:
    """`load_backbone`, or an untrained backbone.

    Args:
        path: as `find_evaluated` returned it.
        arch: architecture of a file; None: told from it.

    Raises:
        UserError: as `load_backbone`, and when `random:` names another architecture.
    """
    chosen = untrained(path)
    if chosen is None:
        return load_backbone(path, arch)
    if arch not in (None, chosen.arch):
        raise UserError(f"{path} is a {chosen.arch}, not a {arch}: leave --arch out")
    backbone = initial_encoder(chosen.arch, 1, None, chosen.seed)
    set_head(backbone, nn.Identity())
    digest = hashlib.sha256(str(chosen).encode())
    for name, value in backbone.state_dict().items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return backbone, LoadReport(path, digest.hexdigest(), chosen.arch, "", 0, {}, untrained_seed=chosen.seed)

"""Load a backbone's weights from any usual checkpoint: strictly, safely, with an account of what was done."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mgd_ssl.errors import UserError
from mgd_ssl.files import read_json
from mgd_ssl.networks import vit
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import (
    BACKBONES,
    FAMILIES,
    SAME_SHAPES,
    anchor_of,
    build_backbone,
    family_of,
    head_of,
    num_classes_of,
    set_head,
    without_head,
)
from mgd_ssl.networks.heads import build_head, head_widths
from mgd_ssl.networks.hub import plain_names
from mgd_ssl.networks.known import Recognised, recognise
from mgd_ssl.networks.layouts import Found, group, locate
from mgd_ssl.networks.normalisation import (
    PIXELS,
    USUAL,
    Normalisation,
    doubted,
    expected_level,
    normalisation_of,
    take_input_of,
)
from mgd_ssl.networks.plain import casts, check_plain, check_values
from mgd_ssl.networks.timm_cnn import TIMM
from mgd_ssl.networks.weights_file import WeightsFile, read_weights
from mgd_ssl.printable import shown
from mgd_ssl.run.folder import run_of

OPTIONAL = "num_batches_tracked"  # absent from checkpoints older than torch 0.4.1, and without influence
ANCHORS = [family.anchor for family in FAMILIES]  # what stands before one of them is the prefix


class Asked(NamedTuple):
    """What is wanted of a file besides its backbone."""

    arch: str | None = None  # key of `BACKBONES`; None: told from the shapes
    classifier: bool = False  # keep it, if the file has one, of whatever number of classes
    head: Literal["none", "any", "needed"] = "none"  # its projection head: no, if there is one that is known, or else
    normalisation: Normalisation | None = None  # of its input; None: as the file, or what is known of it, says


class Trained(NamedTuple):
    """A network from a file."""

    backbone: nn.Module
    report: LoadReport
    head: nn.Module | None = None  # [N, d] -> [N, dim], not normalised


def load_backbone(path: Path, arch: str | None = None, with_classifier: bool = False) -> tuple[nn.Module, LoadReport]:
    """A trained backbone from a file; see `load_trained`."""
    return load_trained(path, Asked(arch, with_classifier))[:2]


def load_trained(path: Path, asked: Asked = Asked()) -> Trained:  # noqa: B008
    """A trained backbone from a file of any layout in `layouts.py`: torch's or safetensors.

    Every tensor of the backbone but the classifier must be there with its shape, dense, of floating point and finite
    in float32, which it is cast to; the BatchNorms must have seen data, and their variances may not be negative. A
    backbone whose input was normalised in another way takes ours and changes it.

    Args:
        path: of the file.
        asked: of it.

    Returns:
        The backbone with its classifier removed (an identity) unless it was kept, how its keys were mapped, and its
        projection head if it was asked for.

    Raises:
        UserError: naming the file, the first tensor at fault and the remedy.
    """
    file = read_weights(path)
    state, names = plain_names(file.state, file.hub, path)
    asked = asked._replace(arch=asked.arch or _named_beside(path))
    of_timm = asked.arch is not None and asked.arch.startswith(TIMM)
    place = locate(state, [anchor_of(str(asked.arch))] if of_timm else ANCHORS, path)
    whole = _whole(state, place)
    backbone: nn.Module
    if vit.ANCHOR in whole:
        if asked.arch in BACKBONES or of_timm:
            raise UserError(f"{path} holds a ViT, not a {asked.arch}: pass another file or architecture")
        check_plain(whole, path)
        check_values(whole, path)
        backbone, arch = vit.load_vit(whole, asked.arch, file.hub, path)
        found = {name: value for name, value in whole.items() if name.split(".")[0] not in vit.UNUSED}
        classes = None
    else:
        backbone, arch, found, classes = _load_cnn(whole, place, asked, path)
    head = _head(state, place, path, asked.head == "needed") if asked.head != "none" else None
    account = _account(state, place, found, head)
    seen = recognise(path.name, file.md5, file.sha256)
    normalisation, said_by, licence = _input(file, arch, seen, asked)
    report = LoadReport(
        path, file.sha256, arch, place.prefix, len(found), {**account, **file.others}, casts(found), classes=classes,
        layout=names or place.layout.name, head=_widths(head), normalisation=normalisation, normalised_by=said_by,
        recognised=seen, licence=licence, md5=file.md5,
    )  # fmt: skip
    if said_by == "usual" and run_of(path) is None:  # nobody says it
        report = report._replace(doubt=doubted(expected_level(backbone), normalisation))
    take_input_of(backbone, normalisation)
    return Trained(backbone.eval(), report, head)


def _load_cnn(
    whole: dict[str, Tensor], place: Found, asked: Asked, path: Path
) -> tuple[nn.Module, str, dict[str, Tensor], int | None]:
    """The network, its architecture, the tensors it took and the classes of its classifier, if that was kept."""
    arch = asked.arch or _fitting_arch(whole, path)
    backbone = _for_classes(arch, whole, path) if asked.classifier and not place.head else None
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
    return backbone, arch, found, classes


def _whole(state: dict[str, Tensor], place: Found) -> dict[str, Tensor]:
    """The network's tensors under their plain names, those of other parts of its program left out."""
    named = {key.removeprefix(place.prefix): value for key, value in state.items() if key.startswith(place.prefix)}
    return {key: value for key, value in named.items() if not key.startswith(place.layout.inside)}


def _account(state: dict[str, Tensor], place: Found, found: dict[str, Tensor], head: nn.Module | None) -> Counter[str]:
    """What was not used of a file's tensors: first part of their names -> how many."""
    used = {place.prefix + key for key in found}
    if head is not None:
        used |= {key for key in state if key.startswith(place.head)}
    return Counter(group(key) for key in state if key not in used)


def _head(state: dict[str, Tensor], place: Found, path: Path, needed: bool) -> nn.Module | None:
    if not place.head and not needed:
        return None
    if not place.head:
        raise UserError(
            f"{path} holds no projection head that is known, which terms on embeddings need: pass the whole checkpoint "
            "(of our runs checkpoints/step_*.pt instead of encoder.pt), or leave those terms out"
        )
    own = {key.removeprefix(place.head): value for key, value in state.items() if key.startswith(place.head)}
    try:
        return build_head(own, path, nn.GELU if place.layout.gelu else nn.ReLU)
    except UserError:
        if needed:
            raise
        return None


def _widths(head: nn.Module | None) -> tuple[int, ...]:
    widths = [] if head is None else head_widths(head)
    return (widths[0][0], *(out for _, out in widths)) if widths else ()


def _input(
    file: WeightsFile, arch: str, seen: Recognised | None, asked: Asked
) -> tuple[Normalisation, str, str | None]:
    """Mean and deviation of the network's input, who says so, and the licence of its weights."""
    timm = file.hub.get("pretrained_cfg")
    licence = timm.get("license") if isinstance(timm, dict) else None
    mean, std, known = vit.input_of(asked.arch) if asked.arch and asked.arch not in BACKBONES else (None, None, None)
    tagged = normalisation_of(mean, std)
    licence = seen.known.licence if seen is not None else licence or known
    if asked.normalisation is not None:
        return asked.normalisation, "as it was set", licence
    if file.normalisation is not None:
        return file.normalisation, "as the files beside it say", licence
    if tagged is not None:
        return tagged, "as timm says of this name", licence
    if seen is not None:
        return (PIXELS if seen.known.pixels else USUAL), f"as {seen.known.name} has", licence
    return USUAL, "usual", licence


def _for_classes(arch: str, whole: dict[str, Tensor], path: Path) -> nn.Module | None:
    """A network with a classifier of as many classes as that of a file, None where the file has no such classifier."""
    usual = _without_values(arch)
    name = family_of(usual).classifier
    head = {key: value for key, value in whole.items() if key.startswith(f"{name}.")}
    last = list(head_of(usual).state_dict(prefix=f"{name}."))[-1]  # bias of the last layer
    if head.keys() != head_of(usual).state_dict(prefix=f"{name}.").keys() or head[last].ndim != 1:
        return None
    return build_backbone(arch, len(head[last]))


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
    folder = run_of(path)
    student = "" if folder is None else str(read_json(folder / "config.json").get("config", {}).get("student"))
    return student if student.startswith(TIMM) or student in SAME_SHAPES else None


def _fitting_arch(whole: dict[str, Tensor], path: Path) -> str:
    """The architecture whose tensors, the classifier's left out, have these shapes."""

    def mismatches(arch: str) -> int:
        body = without_head(_without_values(arch), whole)
        shapes = {key: None if value.is_nested else value.shape for key, value in body.items()}
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

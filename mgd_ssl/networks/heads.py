"""Projection heads from files: linear layers, BatchNorms and what lies between them, told from the keys."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from mgd_ssl.errors import UserError
from mgd_ssl.networks.plain import check_plain, check_values


def build_head(state: Mapping[str, Tensor], path: Path, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A projection head [N, d] -> [N, dim] from its tensors, strictly.

    Linear layers and BatchNorms are told from their tensors, an activation stands wherever a number is left out: `0 2`
    (MoCo v2), `0 1 3` with a BatchNorm at 1 (SwAV), `0 1 3 4` (MoCo v3). MoCo v1's is a single layer without a number.

    Args:
        state: of the head, keys relative to it.
        path: of the file, for errors.
        activation: between its layers.

    Raises:
        UserError: for tensors of another kind of head.
    """
    if "weight" in state:
        state = {f"0.{key}": value for key, value in state.items()}
    parts: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        number, _, name = key.partition(".")
        if not (number.isascii() and number.isdigit() and len(number) < 3):
            raise _unknown(path, key)
        parts.setdefault(int(number), {})[name] = value
    check_plain(state, path)
    check_values(state, path)
    head = nn.Sequential()
    for place in range(max(parts, default=0) + 1):
        head.append(_layer(parts[place], path, place) if place in parts else activation())
    widths = head_widths(head)
    joined = all(before[1] == after[0] for before, after in pairwise(widths))
    if not widths or not joined or not isinstance(head[0], nn.Linear):
        raise _unknown(path, f"layers of {widths}")
    try:
        head.load_state_dict(dict(state))
    except RuntimeError as error:  # strict: names and shapes
        raise _unknown(path, str(error).splitlines()[-1].strip()) from error
    return head.eval().requires_grad_(False)


def head_widths(head: nn.Module) -> list[tuple[int, int]]:
    """(in, out) of every linear layer."""
    return [(layer.in_features, layer.out_features) for layer in head.modules() if isinstance(layer, nn.Linear)]


def output_width(head: nn.Module) -> int:
    """Size of the embedding."""
    return head_widths(head)[-1][1]


def _layer(part: Mapping[str, Tensor], path: Path, number: int) -> nn.Module:
    if "running_mean" in part and part["running_mean"].ndim == 1:
        if "num_batches_tracked" not in part:
            raise _unknown(path, f"{number} without num_batches_tracked")
        return nn.BatchNorm1d(len(part["running_mean"]), affine="weight" in part)
    weight = part.get("weight")
    if weight is None or weight.ndim != 2:
        raise _unknown(path, f"{number}.{next(iter(part))}")
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in part)
    return layer.to_empty(device="cpu")


def _unknown(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} holds a projection head of a kind that is not known ({what}): use terms that need no head, or save it "
        "as linear layers and BatchNorms, numbered as in a torch.nn.Sequential"
    )

"""A teacher's own projection head: what makes an embedding of its pooled feature."""

from pathlib import Path

import torch
from torch import Tensor, nn

from mgd_ssl.errors import UserError
from mgd_ssl.networks.layouts import _tensors
from mgd_ssl.networks.plain import check_plain, check_values
from mgd_ssl.run.checkpoint import parsed, read_torch_file

MLP = ("0.weight", "0.bias", "2.weight", "2.bias")  # MoCo v2's
LINEAR = ("weight", "bias")  # MoCo v1's


def load_head(path: Path, prefix: str) -> nn.Module:
    """The projection head of a MoCo checkpoint or of one of ours: [N, d] -> [N, dim], not normalised.

    Args:
        path: of the file, from which `load_backbone` has loaded the backbone.
        prefix: what stands before the backbone's keys in it.

    Raises:
        UserError: when the file holds none.
    """
    state = _tensors(parsed(read_torch_file(path), path), path)
    own = {key.removeprefix(f"{prefix}fc."): value for key, value in state.items() if key.startswith(f"{prefix}fc.")}
    check_plain(own, path)
    check_values(own, path)
    if own.keys() == set(MLP) and _fits(own, "0", "2"):
        hidden, width = own["0.weight"].shape
        head: nn.Module = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, len(own["2.bias"])))
    elif own.keys() == set(LINEAR) and prefix.endswith("encoder_q."):  # elsewhere it is a classifier
        head = nn.Linear(own["weight"].shape[1], len(own["bias"]))
    else:
        raise UserError(
            f"the teacher {path} has no projection head, which a term on embeddings needs: pass a whole MoCo "
            "checkpoint (of a run of ours checkpoints/step_*.pt, not encoder.pt), or use simreg or compress, which "
            "need none"
        )
    head.load_state_dict({key: value.to(torch.float32) for key, value in own.items()})
    return head


def output_width(head: nn.Module) -> int:
    """Size of the embedding."""
    return [module.out_features for module in head.modules() if isinstance(module, nn.Linear)][-1]


def _fits(own: dict[str, Tensor], first: str, last: str) -> bool:
    return all(own[f"{name}.weight"].ndim == 2 for name in (first, last)) and (
        own[f"{first}.weight"].shape[0] == own[f"{last}.weight"].shape[1]
    )

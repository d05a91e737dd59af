"""A file of weights as torch or safetensors wrote it, and what lies beside it in a folder from the Hugging Face hub."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mgd_ssl.errors import UserError
from mgd_ssl.networks.layouts import innermost
from mgd_ssl.networks.normalisation import Normalisation, normalisation_of
from mgd_ssl.networks.plain import check_names
from mgd_ssl.run.checkpoint import damaged, parsed, read_torch_file
from mgd_ssl.run.folder import HUB_KEYS, is_run

LENGTH = 8  # bytes of the number that a safetensors file begins with
HUB_CONFIG, HUB_INPUT = "config.json", "preprocessor_config.json"


class WeightsFile(NamedTuple):
    """What a file holds."""

    path: Path
    sha256: str
    md5: str
    state: dict[str, Tensor]  # all of its tensors by name
    others: dict[str, int]  # other dictionaries of tensors: name -> number of tensors
    hub: dict[str, Any]  # config.json beside it, of transformers or timm; empty without one
    normalisation: Normalisation | None  # as the folder says


def read_weights(path: Path) -> WeightsFile:
    """Read a file of torch.save or safetensors, without running any code it may carry.

    Raises:
        UserError: when it is missing, damaged, or holds no tensors by name.
    """
    content = _content(path)
    others: dict[str, int] = {}
    if _is_safetensors(content):
        state = _safetensors(content, path)
    else:
        inner, others = innermost(parsed(content, path), Tensor)
        state = {key: value for key, value in inner.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path} holds no tensors by name: pass a checkpoint with a state dict")
    check_names(state, path)
    hub = _hub_config(path)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return WeightsFile(
        path, hashlib.sha256(content).hexdigest(), md5, state, others, hub, _said(path, hub) if hub else None
    )


def _content(path: Path) -> bytes:
    """The bytes of a file; torch's are held against their checksums."""
    if os.path.isfile(path):  # not Path.is_file, which raises for some names
        try:
            with path.open("rb") as file:
                if _is_safetensors(file.read(LENGTH + 1)):
                    file.seek(0)
                    return file.read()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    return read_torch_file(path)


def _is_safetensors(content: bytes) -> bool:
    """Whether a file begins with a length and a JSON object: https://github.com/huggingface/safetensors (Format)."""
    return content[LENGTH : LENGTH + 1] == b"{" and not content.startswith((b"PK", b"\x80"))


def _safetensors(content: bytes, path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise damaged(path) from error


def _hub_config(path: Path) -> dict[str, Any]:
    """`config.json` beside the weights, if transformers or timm wrote it; a run's has no such keys."""
    if is_run(path.parent):
        return {}
    found = _json(path.with_name(HUB_CONFIG))
    return found if HUB_KEYS & found.keys() else {}


def _said(path: Path, hub: dict[str, Any]) -> Normalisation | None:
    """Mean and deviation of the network's input as timm's config.json or transformers' preprocessor_config.json say."""
    timm = hub.get("pretrained_cfg")
    if isinstance(timm, dict):
        return normalisation_of(timm.get("mean"), timm.get("std"))
    processor = _json(path.with_name(HUB_INPUT))
    if processor.get("do_normalize") is False:
        return Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return normalisation_of(processor.get("image_mean"), processor.get("image_std"))


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (no JSON object), and it says what the weights beside it are: restore it")
    return found

"""Linear evaluation of frozen backbones, by published protocols or a search over learning rates.

The public names are imported when they are asked for, so that `mgd-ssl linear --help` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linear_eval.command import LinearConfig as LinearConfig
    from linear_eval.evaluator import linear as linear
    from linear_eval.protocols import Protocol as Protocol
    from linear_eval.protocols import load_protocol as load_protocol

_HOMES = {
    "linear": "linear_eval.evaluator",
    "LinearConfig": "linear_eval.command",
    "Protocol": "linear_eval.protocols",
    "load_protocol": "linear_eval.protocols",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

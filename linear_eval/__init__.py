"""Linear evaluation of frozen backbones, by published protocols or a search over learning rates."""

from linear_eval.evaluator import linear
from linear_eval.linear import LinearConfig
from linear_eval.protocols import Protocol, load_protocol

__all__ = ["LinearConfig", "Protocol", "linear", "load_protocol"]

"""MoCo: momentum contrast for unsupervised representation learning.

Knows contrastive learning and nothing of distillation (https://arxiv.org/abs/1911.05722,
v2: https://arxiv.org/abs/2003.04297).
"""

from moco.augment import View, ViewKey, ViewPolicy, draw_unplaced, draw_view, place_view, render_view
from moco.builder import MoCo, MoCoOutput, projection_head

__all__ = [
    "MoCo",
    "MoCoOutput",
    "View",
    "ViewKey",
    "ViewPolicy",
    "draw_unplaced",
    "draw_view",
    "place_view",
    "projection_head",
    "render_view",
]

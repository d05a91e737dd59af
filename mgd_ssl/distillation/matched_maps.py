"""Matching Guided Distillation as a term: the student's maps are drawn towards the teacher's reduced ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mgd_ssl.distillation.term import Needs, Seen
from mgd_ssl.mgd.mgd import MGD, Target
from moco.keyed import keyed_seed


class MatchedMaps(nn.Module):
    """Section 3.1 of https://arxiv.org/abs/2008.09958; the matching itself is updated by `rematch`.

    Args:
        mgd: assignments, margins and norms.
        seed: of the run, for reducers that draw.
    """

    needs = Needs(maps=True)

    def __init__(self, mgd: MGD, seed: int = 0) -> None:
        super().__init__()
        self.mgd, self.seed = mgd, seed

    def prepare(self, teacher: Seen, step: int) -> list[Target]:
        """The teacher's maps, reduced to the student's channels."""
        generator = None
        if self.mgd.reducer.draws:
            device = teacher.maps[0].device
            generator = torch.Generator(device).manual_seed(keyed_seed(self.seed, "random drop", step))
        return self.mgd.reduce(teacher.maps, generator)

    def loss(self, student: Seen, target: Sequence[Target]) -> Tensor:
        """Distance of the student's maps from them."""
        return self.mgd.loss(student.maps, target)

    def after_step(self) -> None:
        """Nothing."""

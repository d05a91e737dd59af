"""A teacher as weighted loss terms of a student."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from mgd_ssl.distillation.term import Seen, Term
from mgd_ssl.networks.taps import FeatureTaps


class Guide(nn.Module):
    """The student's taps, named terms and their weights; without terms it costs and adds nothing.

    Args:
        student: the network that is watched; it stays outside this module.
        taps: module names of its ReLUs, one a stage.
        terms: modules that are `Term`s, by the name under which their loss is logged.
        weights: factor of each.
    """

    def __init__(
        self,
        student: nn.Module,
        taps: Sequence[str] = (),
        terms: Mapping[str, nn.Module] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.terms, self.weights = nn.ModuleDict(terms or {}), dict(weights or {})
        if self.terms.keys() != self.weights.keys():
            raise ValueError(f"terms are {list(self.terms)} and weights {list(self.weights)}: pass one for each")
        self.taps = FeatureTaps(student, taps)

    def named_terms(self) -> Iterator[tuple[str, Term]]:
        """Every term and its name."""
        return cast(Iterator[tuple[str, Term]], iter(self.terms.items()))

    @contextmanager
    def watch(self) -> Iterator[Seen]:
        """What the student's taps see inside the block."""
        with self.taps.record() as maps:
            yield Seen(maps)

    @torch.no_grad()
    def prepare(self, teacher: Seen, step: int) -> dict[str, Any]:
        """The targets of a batch by the name of their term; see `Term.prepare`."""
        return {name: term.prepare(teacher, step) for name, term in self.named_terms()}

    def losses(self, student: Seen, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted losses by the name of their term.

        Raises:
            ValueError: when the targets are not those of the terms.
        """
        if targets.keys() != self.terms.keys():
            raise ValueError(f"targets are given for {list(targets)}: pass those of {list(self.terms)}")
        return {name: self.weights[name] * term.loss(student, targets[name]) for name, term in self.named_terms()}

    def after_step(self) -> None:
        """What follows the update of the weights."""
        for _, term in self.named_terms():
            term.after_step()

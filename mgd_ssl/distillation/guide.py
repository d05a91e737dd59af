"""A teacher as weighted loss terms of a student."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from mgd_ssl.distillation.term import Needs, Seen, Term
from mgd_ssl.distillation.weighting import Weight, gradient_norms
from mgd_ssl.networks.taps import FeatureTaps, HeadTap


class Guide(nn.Module):
    """The student's taps, named terms and their weights; without terms it costs and adds nothing.

    Args:
        student: the network that is watched; it stays outside this module.
        taps: module names of its ReLUs, one a stage.
        terms: modules that are `Term`s, by the name under which their loss is logged.
        weights: factor of each, by the epoch or always the same.
        head: module name of what makes the student's output of its pooled feature; empty: neither is watched.

    The factors by which balanced terms are held to their share are buffers.
    """

    def __init__(
        self,
        student: nn.Module,
        taps: Sequence[str] = (),
        terms: Mapping[str, nn.Module] | None = None,
        weights: Mapping[str, float | Weight] | None = None,
        head: str = "",
    ) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms or {})
        given = (weights or {}).items()
        self.weights = {name: weight if isinstance(weight, Weight) else Weight(weight) for name, weight in given}
        if self.terms.keys() != self.weights.keys():
            raise ValueError(f"terms are {list(self.terms)} and weights {list(self.weights)}: pass one for each")
        self.taps, self.head = FeatureTaps(student, taps), HeadTap(student, head)
        self.balanced = [name for name, weight in self.weights.items() if weight.balance is not None]
        for name in self.balanced:
            self.register_buffer(f"factor_{name}", torch.ones(()))
        self._now = self.at(0.0)

    def at(self, epoch: float) -> dict[str, float]:
        """Weights of the terms that act after so many epochs, by their name."""
        return {name: now for name, weight in self.weights.items() if (now := weight(epoch)) > 0}

    def named_terms(self) -> Iterator[tuple[str, Term]]:
        """Every term and its name."""
        return cast(Iterator[tuple[str, Term]], iter(self.terms.items()))

    def needs(self, epoch: float | None = None) -> Needs:
        """What has to be shown to the terms that act at an epoch; None: at any."""
        acting = self.terms if epoch is None else self.at(epoch)
        return Needs.union(term.needs for name, term in self.named_terms() if name in acting)

    @contextmanager
    def watch(self) -> Iterator[Seen]:
        """What the student's taps see inside the block; its feature and output are there after it."""
        with self.taps.record() as maps, self.head.record() as passed:
            seen = Seen(maps)
            yield seen
        if passed:
            seen.feature, seen.output = passed

    @torch.no_grad()
    def prepare(self, teacher: Seen, step: int) -> dict[str, Any]:
        """The targets of a batch by the name of their term, for the terms that act; see `Term.prepare`."""
        self._now = self.at(teacher.epoch)
        return {name: term.prepare(teacher, step) for name, term in self.named_terms() if name in self._now}

    def losses(self, student: Seen, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted losses by the name of their term; 0 of those that rest.

        Raises:
            ValueError: when the targets are not those of the terms that act.
        """
        if targets.keys() != self._now.keys():
            raise ValueError(f"targets are given for {list(targets)}: pass those of {list(self._now)}")
        return {
            name: self._factor(name) * self._now[name] * term.loss(student, targets[name])
            if name in targets
            else _resting(self.terms[name], _place(student))
            for name, term in self.named_terms()
        }

    def _factor(self, name: str) -> Tensor | float:
        return self.get_buffer(f"factor_{name}") if name in self.balanced else 1.0

    def balance(self, losses: Mapping[str, Tensor], student: Seen, reference: str) -> tuple[dict[str, Tensor], ...]:
        """Measure how hard each loss pulls, and hold the balanced terms to their shares from this step on.

        Args:
            losses: of `losses` and those beside them, with their graphs.
            student: what was seen of it; gradients are taken at its last map, or at the feature where no map is read.
            reference: name of the loss whose gradient the shares are of.

        Returns:
            The losses with the new factors, and the norms of their gradients.
        """
        norms = gradient_norms(losses, [_place(one) for one in (student, *student.views.values())])
        changed = dict(losses)
        for name in [name for name in self.balanced if name in self._now]:
            weight = self.weights[name]
            wanted = cast(float, weight.balance) * self._now[name] / weight.value * norms[reference]
            ratio = torch.where(norms[name] > 0, wanted / norms[name].clamp_min(1e-30), 1.0)
            self.get_buffer(f"factor_{name}").mul_(ratio)
            changed[name], norms[name] = ratio * losses[name], ratio * norms[name]
        return changed, norms

    def after_step(self) -> None:
        """What follows the update of the weights."""
        for name, term in self.named_terms():
            if name in self._now:
                term.after_step()


def _place(student: Seen) -> Tensor:
    """Where all losses of a view meet: its last map, or its feature where no map is read."""
    place = student.maps[-1] if student.maps else student.feature
    assert place is not None
    return place


def _resting(term: nn.Module, like: Tensor) -> Tensor:
    """0 with a gradient of 0 for every parameter: several processes wait for all of them."""
    parameters = [parameter.sum() for parameter in term.parameters()]
    return 0.0 * torch.stack(parameters).sum() if parameters else like.new_zeros((), dtype=torch.float32)

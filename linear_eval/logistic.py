"""Logistic regression by L-BFGS over rising inverse penalties C; the best on held-out rows is fitted to all.

The objective is scikit-learn's: the sum of the cross entropies times C, plus half the squared weights; the bias is
free. Divided by C and the number of rows n it is the mean cross entropy plus |w|^2 / (2 n C).

Shapes: N images, C classes, d features.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linear_eval.feature_batches import CachedSource
from linear_eval.heads import Heads, Scores
from linear_eval.protocols import LogisticProtocol, Setting
from mgd_ssl.data.order import held_out
from mgd_ssl.run.checkpoint import FORMAT
from mgd_ssl.run.log import RunLog, logger
from mgd_ssl.training.time_left import TimeLeft
from moco.dist import sum_over_ranks

HISTORY = 10  # pairs of steps and gradients that L-BFGS remembers


class Data(NamedTuple):
    """What the regression is fitted to, and measured on."""

    labels: np.ndarray  # [n] classes of the training set
    num_classes: int
    train: CachedSource
    val: CachedSource


class LogisticProbe:
    """Everything that lives through one logistic regression with one seed; used as a `Probe` is.

    Args:
        protocol: what to do.
        seed: of what is held out.
        data: features and labels.
        device: of the weights.
    """

    def __init__(self, protocol: LogisticProtocol, seed: int, data: Data, device: torch.device) -> None:
        self.protocol, self.data, self.device = protocol, data, device
        self.val = data.val
        self.judged_on = held_out(data.labels, protocol.held_out, seed)
        everything = np.arange(len(data.labels))
        self.rest = np.setdiff1d(everything, self.judged_on)
        self.costs = protocol.costs  # rising
        self.total_steps = len(self.costs) + 1
        self.finished_steps = 0  # values of C, and the last fit
        self.rounds: list[dict[str, Any]] = []
        dim = data.train.values.shape[1]
        self.heads = self._heads(torch.zeros(data.num_classes, dim), torch.zeros(data.num_classes), 0.0)
        self.best = -1  # index of the best C so far, among those tried
        self.best_start: tuple[Tensor, Tensor] | None = None  # its weights

    @property
    def settings(self) -> list[Setting]:
        """Of the head that is left: it has no learning rate, and its weight decay is 1 / (n C)."""
        return self.heads.settings

    def train(self, log: RunLog, stopping: Callable[[], bool], save: Callable[[], None]) -> bool:
        """Fit to the end (True), or to the C after which `stopping` said so (False, when the state is saved)."""
        time_left = TimeLeft(self.total_steps)
        while self.finished_steps < self.total_steps:
            if self._searching():
                told = self._try(self.costs[len(self.rounds)], log)
                self.finished_steps += 1
            else:
                told = self._fit_whole()
                self.finished_steps = self.total_steps
            time_left.finished(self.finished_steps)
            log.progress(self.finished_steps, told, time_left.told(self.finished_steps, {}))
            stop = stopping()
            if self.finished_steps < self.total_steps:
                save()
                if stop:
                    return False
        return True

    def result(self) -> Scores:
        """Scores on the validation set."""
        return self.heads.measure(self.val.all(np.arange(len(self.val.labels))))

    def _searching(self) -> bool:
        tried = len(self.rounds)
        return tried < len(self.costs) and tried - 1 - self.best < self.protocol.patience

    def _try(self, cost: float, log: RunLog) -> str:
        """One C, from where the one before it ended; remembers the best."""
        count = self._fit(self.rest, cost)
        scores = self.heads.measure(self.data.train.all(self.judged_on))
        top1, loss = scores.top1[0], scores.loss[0]
        before = self.rounds[self.best] if self.best >= 0 else {"top1": -1.0, "loss": math.inf}
        if (-top1, loss) < (-before["top1"], before["loss"]):
            self.best, self.best_start = len(self.rounds), (self.heads.weight.clone(), self.heads.bias.clone())
        self.rounds.append({"C": cost, "top1": top1, "loss": loss, "iterations": count})
        log.write("round", self.finished_steps, {"round": len(self.rounds) - 1, "heads": 1, "top1": top1})
        return f"C {cost:.3g}, {count} iterations: top-1 {top1:.2f} on held-out images, loss {loss:.4f}"

    def _fit_whole(self) -> str:
        """The best C on the whole training set."""
        cost, found = self.costs[self.best], self.rounds[self.best]
        logger.info("C %g is the best of %d on held-out images: top-1 %.2f", cost, len(self.rounds), found["top1"])
        assert self.best_start is not None
        weight, bias = self.best_start
        self.heads = self._heads(weight, bias, 0.0)
        count = self._fit(np.arange(len(self.data.labels)), cost)
        return f"C {cost:.3g} on all images, {count} iterations"

    def _fit(self, rows: np.ndarray, cost: float) -> int:
        """Minimise the objective over some rows from the weights there are; returns the iterations it took."""
        decay = 1 / (len(rows) * cost)
        shape, classes = self.heads.weight.shape, self.data.num_classes
        flat = torch.cat([self.heads.weight.flatten(), self.heads.bias]).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [flat], max_iter=self.protocol.iterations, history_size=HISTORY, line_search_fn="strong_wolfe",
            tolerance_grad=self.protocol.tolerance * self._scale(rows), tolerance_change=1e-9,
        )  # fmt: skip

        def objective() -> Tensor:
            weight, bias = flat.detach()[:-classes].view(shape), flat.detach()[-classes:]
            loss, gradient = self._cross_entropy(rows, weight, bias)
            flat.grad = gradient / len(rows)
            flat.grad[:-classes] += decay * weight.flatten()
            return loss / len(rows) + decay / 2 * weight.square().sum()

        optimizer.step(objective)
        weight, bias = flat.detach()[:-classes].view(shape).clone(), flat.detach()[-classes:].clone()
        self.heads = self._heads(weight, bias, decay)
        return int(optimizer.state[flat]["n_iter"])

    @torch.no_grad()
    def _cross_entropy(self, rows: np.ndarray, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over the rows, and its gradient [C d + C], equal on all ranks."""
        loss, gradient = torch.zeros(1, device=self.device), torch.zeros(weight.numel() + len(bias), device=self.device)
        for x, y in self.data.train.all(rows):
            errors = torch.addmm(bias, x, weight.T).log_softmax(dim=1)  # [N, C]
            loss += F.nll_loss(errors, y, reduction="sum")
            errors = errors.exp_()
            errors[torch.arange(len(y), device=y.device), y] -= 1
            gradient[: weight.numel()] += (errors.T @ x).flatten()
            gradient[weight.numel() :] += errors.sum(dim=0)
        return sum_over_ranks(loss)[0], sum_over_ranks(gradient)

    def _scale(self, rows: np.ndarray) -> float:
        """Largest entry of the mean gradient where all weights are 0: what `tolerance` is a share of."""
        zero = torch.zeros_like(self.heads.weight)
        _, gradient = self._cross_entropy(rows, zero, zero.new_zeros(len(self.heads.bias)))
        return float(gradient.abs().max()) / len(rows)

    def _heads(self, weight: Tensor, bias: Tensor, decay: float) -> Heads:
        return Heads(weight.to(self.device), bias.to(self.device), [Setting(0.0, decay)], momentum=0.0)

    # state

    def state(self) -> dict[str, Any]:
        """All that this evaluation needs to go on, of tensors and builtins."""
        return {
            "format": FORMAT,
            "finished": self.finished_steps,
            "rounds": self.rounds,
            "best": self.best,
            "best_start": None if self.best_start is None else [part.cpu() for part in self.best_start],
            "head": [self.heads.weight.cpu(), self.heads.bias.cpu()],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.finished_steps, self.rounds, self.best = state["finished"], state["rounds"], state["best"]
        if start := state["best_start"]:
            self.best_start = start[0].to(self.device), start[1].to(self.device)
        weight, bias = state["head"]
        self.heads = self._heads(weight, bias, 0.0)

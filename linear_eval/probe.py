"""Training of linear heads: the rounds of a search, if the protocol has them, then the one that is measured."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from linear_eval.feature_batches import CachedSource, Source
from linear_eval.heads import Heads, Scores, initial
from linear_eval.protocols import Protocol, Setting
from linear_eval.stretch import ROWS_PER_DIMENSION, Basis, Stretch, principal
from mgd_ssl.data.order import TrainingOrder, held_out
from mgd_ssl.errors import TrainingError, UserError
from mgd_ssl.run.checkpoint import FORMAT
from mgd_ssl.run.log import RunLog, logger
from mgd_ssl.run.runtime import on_rank_zero
from mgd_ssl.training.time_left import TimeLeft
from moco.dist import rank, sum_over_ranks, world_size
from moco.keyed import keyed_seed

SAVE_SECONDS = 10  # an epoch of cached features takes less than writing a checkpoint


class Stage(NamedTuple):
    """One training, down to the end of the learning rate's schedule."""

    rows: np.ndarray  # of the training set
    num_heads: int
    steps: int
    times: float = 1.0  # steps of the whole training that each stands for


class Probe:
    """Everything that lives through one linear evaluation with one seed.

    Args:
        protocol: what to do.
        seed: of everything random in it.
        num_classes: C.
        dim: size of a feature vector.
        labels: [n] classes of the training set.
        train: training features.
        judge: table the rounds of a search read the training set from, held-out rows too; unused without a search.
        val: table of the validation set.
        device: of the heads.
    """

    def __init__(
        self,
        protocol: Protocol,
        seed: int,
        num_classes: int,
        dim: int,
        labels: np.ndarray,
        train: Source,
        judge: CachedSource | None,
        val: CachedSource,
        device: torch.device,
    ) -> None:
        self.protocol, self.seed, self.num_classes, self.dim = protocol, seed, num_classes, dim
        self.train_source, self.judge, self.val, self.device = train, judge, val, device
        self.held_out = held_out(labels, protocol.held_out, seed)
        self.stages = stages(protocol, len(labels), self.held_out)
        self.stage, self.step = 0, 0  # number of the stage, and finished steps in it
        self.settings = protocol.settings  # of the heads that are left
        self.rounds: list[dict[str, Any]] = []  # settings and scores of finished rounds
        self.basis: Basis | None = None
        self.turned: CachedSource | None = None
        self._begin_stage()

    @property
    def total_steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def finished_steps(self) -> int:
        """Of all stages so far."""
        return sum(stage.steps for stage in self.stages[: self.stage]) + self.step

    def train(self, log: RunLog, stopping: Callable[[], bool], save: Callable[[], None]) -> bool:
        """Train to the end (True), or to the step after which `stopping` said so (False, when the state is saved)."""
        self.time_left = TimeLeft(self.total_steps)
        while True:
            if not self._train_stage(log, stopping, save):
                return False
            if self.stage == len(self.stages) - 1:
                return True
            self._end_round(log)

    def result(self) -> Scores:
        """Scores of the one head that is left on the validation set."""
        return self.heads.measure(self.val.all(np.arange(len(self.val.labels))))

    # one stage

    def _train_stage(self, log: RunLog, stopping: Callable[[], bool], save: Callable[[], None]) -> bool:
        stage, batch_size = self.stages[self.stage], self.protocol.batch_size
        per_epoch = len(stage.rows) // batch_size
        epochs = math.ceil(stage.steps / per_epoch)
        seed = keyed_seed(self.seed, "linear order", self.stage)
        order = TrainingOrder(len(stage.rows), batch_size, epochs, seed, self.step, rank(), world_size())
        live = self.protocol.features == "live"
        log_every = max(1, per_epoch // 10) if live else per_epoch
        saved = time.monotonic()
        with self._source().batches(stage.rows, order) as batches:
            while self.step < stage.steps:
                x, y = next(batches)
                lr_factor = self.protocol.lr_factor(self.step / stage.steps)
                self.losses += self.heads.step(x, y, lr_factor, batch_size)
                self.num_losses += 1
                self.step += 1
                self.time_left.finished(self.finished_steps)
                ended = self.step == stage.steps
                if self.step % log_every == 0 or ended:
                    self._log(log, self.step / per_epoch, lr_factor)
                if self.step % per_epoch == 0 and live:
                    self._log_accuracy(log)
                stop = stopping()
                if stop or (self.step % per_epoch == 0 and on_rank_zero(_overdue(saved))):
                    save()
                    saved = time.monotonic()
                if stop and not (ended and self.stage == len(self.stages) - 1):
                    return False
        return True

    def _end_round(self, log: RunLog) -> None:
        """Judge the heads on the held-out rows, and start the next stage with the best."""
        source = self.turned or self.judge
        assert source is not None
        scores = self.heads.measure(source.all(self.held_out))
        order = ranking(scores)
        best, left = order[0], self.stages[self.stage + 1].num_heads
        self.rounds.append({"settings": [list(s) for s in self.settings], "top1": scores.top1, "loss": scores.loss})
        log.write("round", self.finished_steps, {"round": self.stage, "heads": len(order), "top1": scores.top1[best]})
        logger.info(
            "round %d of %d: %d heads, best on held-out images lr %g, weight decay %g: top-1 %.2f; %d go on",
            self.stage + 1, len(self.protocol.rounds), len(order), *self.settings[best], scores.top1[best], left,
        )  # fmt: skip
        self.settings = [self.settings[i] for i in sorted(order[:left])]
        self.stage, self.step = self.stage + 1, 0
        self._begin_stage()

    def _begin_stage(self) -> None:
        """Heads as they start."""
        seed = keyed_seed(self.seed, "linear head")
        weight, bias = (
            value.to(self.device) for value in initial(self.protocol.init, self.num_classes, self.dim, seed)
        )
        stretch = None
        if (times := self.stages[self.stage].times) > 1:
            basis = self._basis()
            stretch = Stretch(times, self.protocol.curvature, basis.variances)
            weight = weight @ basis.vectors
        self.heads = Heads(weight, bias, self.settings, self.protocol.momentum, stretch)
        self._reset_meter()

    def _basis(self) -> Basis:
        """Principal directions of the features the rounds train on."""
        if self.basis is None:
            assert self.judge is not None
            rows = self.stages[0].rows
            some = rows[:: max(1, len(rows) // (ROWS_PER_DIMENSION * self.dim))]
            self.basis = principal(self.judge.all(some), self.dim, self.device)
        return self.basis

    def _source(self) -> Source:
        """Training features in the basis of the stage's heads."""
        if self.stages[self.stage].times == 1:
            self.turned = None
            return self.train_source
        assert self.judge is not None
        self.turned = self.turned or self.judge.rotated(self._basis().vectors)
        return self.turned

    # telling

    def _log(self, log: RunLog, epoch: float, lr_factor: float) -> None:
        losses = sum_over_ranks(self.losses) / (self.num_losses * world_size())
        loss = losses.nan_to_num(math.inf).min().item()
        self._reset_meter()
        if len(self.settings) == 1 and not math.isfinite(loss):
            lr = self.settings[0].lr
            raise TrainingError(
                f"the loss of the head with lr {lr:g} is not finite before step {self.step}: the features are too "
                "large for this protocol; try protocol sweep"
            )
        left = len(self.settings)
        row = {"stage": self.stage, "epoch": epoch, "heads": left, "loss": loss, "lr_factor": lr_factor}
        log.write("train", self.finished_steps, row)
        told = f"round {self.stage + 1}, {left} heads, " if self.stage < len(self.stages) - 1 else ""
        time_left = self.time_left.told(self.finished_steps, {})
        log.progress(self.finished_steps, f"{told}epoch {epoch:.1f}, loss {loss:.4f}, lr x {lr_factor:.3g}", time_left)

    def _log_accuracy(self, log: RunLog) -> None:
        scores = self.result()
        log.write("val", self.finished_steps, {"top1": scores.top1[0], "top5": scores.top5[0], "loss": scores.loss[0]})

    def _reset_meter(self) -> None:
        self.losses = torch.zeros(len(self.settings), device=self.device)
        self.num_losses = 0

    # state

    def state(self) -> dict[str, Any]:
        """All that this evaluation needs to go on, of tensors and builtins."""
        return {
            "format": FORMAT,
            "stage": self.stage,
            "step": self.step,
            "rounds": self.rounds,
            "basis": None if self.basis is None else [part.cpu() for part in self.basis],
            "heads": self.heads.state(),
            "losses": sum_over_ranks(self.losses.clone()).cpu() / world_size(),
            "num_losses": self.num_losses,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.stage, self.step, self.rounds = state["stage"], state["step"], state["rounds"]
        self.settings = [Setting(*pair) for pair in state["heads"]["settings"]]
        if basis := state.get("basis"):
            self.basis = Basis(*(part.to(self.device) for part in basis))
        self._begin_stage()
        self.heads.load(state["heads"])
        self.losses.copy_(state["losses"])
        self.num_losses = state["num_losses"]


def _overdue(saved: float) -> Callable[[], bool]:
    return lambda: time.monotonic() - saved > SAVE_SECONDS


def ranking(scores: Scores) -> list[int]:
    """Heads from the best to the worst: by top-1, then by loss, then as listed."""
    losses = [loss if math.isfinite(loss) else math.inf for loss in scores.loss]
    return sorted(range(len(losses)), key=lambda head: (-scores.top1[head], losses[head]))


def stages(protocol: Protocol, num_images: int, judged_on: np.ndarray) -> list[Stage]:
    """The rounds on what is not held out, then one head on the whole training set.

    Raises:
        UserError: when a batch takes more images than there are, or does not divide over the processes.
    """
    batch, processes = protocol.batch_size, world_size()
    rest = np.setdiff1d(np.arange(num_images), judged_on)
    if len(rest) < batch:
        raise UserError(
            f"the training set has {len(rest)} images ({len(judged_on)} are held out), fewer than the batch of "
            f"{batch} of protocol {protocol.name}: add images, or pass a protocol file with a smaller batch_size"
        )
    if batch % processes:
        raise UserError(
            f"the batch of {batch} of protocol {protocol.name} cannot be shared by {processes} processes: "
            "choose a number of processes that divides it"
        )
    per_epoch = len(rest) // batch
    whole = protocol.epochs * per_epoch
    rounds = []
    for r in protocol.rounds:
        steps = min(max(1, r.steps, round(r.epochs * per_epoch)), whole)
        rounds.append(Stage(rest, r.heads, steps, whole / steps if protocol.curvature else 1))
    return [*rounds, Stage(np.arange(num_images), 1, protocol.epochs * (num_images // batch))]

"""Protocols of linear evaluation: every number a result depends on, by name, one TOML file each."""

import math
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from mgd_ssl.command_line import find_config, load_toml, read_toml
from mgd_ssl.errors import UserError
from mgd_ssl.settings import Settings, each_once

FOLDER = Path(str(resources.files("linear_eval"))) / "protocols"


class Setting(NamedTuple):
    """What heads of one protocol differ in."""

    lr: float
    weight_decay: float


class Round(Settings):
    """One round of a search: a complete training of the heads that are left."""

    heads: int = Field(ge=1, le=10**6)
    """How many enter it: the best of the round before, all in the first."""
    epochs: float = Field(gt=0, le=1e6)
    """Its length, down to the end of the schedule."""
    steps: int = Field(0, ge=0, le=2**31)
    """At least so many, where an epoch has few; never more than in `epochs` of the protocol."""


class Protocol(Settings):
    """A linear evaluation."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=100)
    """Short and file-safe."""
    version: int = Field(ge=1)
    """Raised whenever a number below changes, so that results of two versions are never compared unawares."""
    features: Literal["live", "cached"]
    """live: of random crops and flips, new in every epoch. cached: of centre crops, computed once."""
    normalise: bool = False
    """Divide every feature vector by its norm."""
    standardise: bool = False
    """Centre every dimension and divide it by its deviation over the training set (after `normalise`)."""
    epochs: int = Field(ge=1, le=10**6)
    """Passes over the training set."""
    batch_size: int = Field(ge=1, le=2**24)
    """Images in a step over all processes."""
    lrs: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] = Field(min_length=1)
    """Learning rates that are tried; one that is not searched."""
    weight_decays: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] = Field(min_length=1)
    """Weight decays that are tried with each; they act on the bias too, as torch.optim.SGD's."""
    momentum: float = Field(ge=0, lt=1)
    """Momentum of SGD."""
    schedule: Literal["steps", "cosine"]
    """Of the learning rate: times `decay` from each of the `milestones` on, or a cosine to 0 by step."""
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs, up to the last."""
    decay: float = Field(1.0, gt=0, le=1)
    """Factor at a milestone."""
    init: Literal["normal", "uniform"]
    """Of a head: normal with deviation 0.01 and bias 0, or torch.nn.Linear's."""
    held_out: float = Field(0.0, ge=0, lt=1)
    """Share of every class of the training set that judges the heads of a search."""
    rounds: tuple[Round, ...] = ()
    """The search, before the winner is trained on the whole training set."""
    curvature: float = Field(0.0, ge=0, le=1e6)
    """0: short rounds are trainings with the learning rates as they are. Else a step of a short round is as long as all
    the steps of the whole training it stands for, on a loss of this curvature along features of variance 1."""

    @field_validator("lrs", "weight_decays", "milestones")
    @classmethod
    def _each_once(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return each_once(value)

    @model_validator(mode="after")
    def _milestones_are_reached(self) -> "Protocol":
        if late := [milestone for milestone in self.milestones if milestone > self.epochs]:
            raise ValueError(f"milestones has {late[0]}: give epochs up to {self.epochs}, the length of the training")
        return self

    @model_validator(mode="after")
    def _search_is_whole(self) -> "Protocol":
        entering, heads = [r.heads for r in self.rounds], len(self.settings)
        if not entering:
            if heads > 1:
                raise ValueError(f"rounds is empty but {heads} heads are described: add rounds that search them")
            return self
        if entering[0] != heads:
            raise ValueError(f"rounds.0.heads is {entering[0]}: set it to {heads}, the lrs times the weight_decays")
        for i, (before, after) in enumerate(pairwise(entering), start=1):
            if after > before:
                raise ValueError(f"rounds.{i}.heads is {after}: set it to {before} or less, as many as are left")
        for i, r in enumerate(self.rounds):
            if r.epochs > self.epochs:
                raise ValueError(f"rounds.{i}.epochs is {r.epochs:g}: set it to {self.epochs} or less, all of them")
        if not self.held_out:
            raise ValueError("held_out is 0: give the share of the training set that judges the rounds")
        if self.features == "live":
            raise ValueError("features is 'live': set it to 'cached', which a search with rounds needs")
        return self

    @property
    def settings(self) -> list[Setting]:
        """All heads."""
        return [Setting(lr, weight_decay) for lr in self.lrs for weight_decay in self.weight_decays]

    def lr_factor(self, progress: float) -> float:
        """Share of the learning rate that is left after a share `progress` in [0, 1) of a training."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        # rounded: 60 of 100 epochs must not come out as 59.999...
        epoch = round(progress * self.epochs, 6)
        return self.decay ** sum(epoch >= milestone for milestone in self.milestones)

    def __str__(self) -> str:
        lrs, decays = (f"{v[0]:g}" if len(v) == 1 else f"{v[0]:g}..{v[-1]:g}" for v in (self.lrs, self.weight_decays))
        steps = f"x{self.decay:g} at {'/'.join(map(str, self.milestones))}"
        rounds = ", then ".join(
            f"{r.heads} for {r.epochs:g} epochs" + (f" and at least {r.steps} steps" if r.steps else "")
            for r in self.rounds
        )
        stretched = f"; steps stretched to the whole length at curvature {self.curvature:g}" if self.curvature else ""
        parts = [
            f"linear {self.name} v{self.version}",
            "random crops and flips" if self.features == "live" else "cached centre crops",
            "normalised" if self.normalise else "",
            "standardised" if self.standardise else "",
            f"{self.epochs} epochs of SGD, batch {self.batch_size}, lr {lrs}, weight decay {decays}, "
            f"momentum {self.momentum:g}, {'cosine' if self.schedule == 'cosine' else steps}, init {self.init}",
            f"chosen on {self.held_out:.0%} of the training set ({rounds}{stretched})" if self.rounds else "",
        ]
        return "; ".join(filter(None, parts))


class LogisticProtocol(Settings):
    """A linear evaluation by logistic regression."""

    solver: Literal["lbfgs"]
    """Tells such a protocol from the others."""
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=100)
    """Short and file-safe."""
    version: int = Field(ge=1)
    """Raised whenever a number below changes."""
    features: Literal["cached"] = "cached"
    """Of centre crops, computed once."""
    normalise: bool = False
    """Divide every feature vector by its norm."""
    standardise: bool = False
    """Centre every dimension and divide it by its deviation over the training set (after `normalise`)."""
    lowest: float = Field(ge=-20, le=20)
    """Power of ten of the smallest inverse penalty C."""
    highest: float = Field(ge=-20, le=20)
    """Of the largest."""
    count: int = Field(ge=1, le=1000)
    """How many values, evenly in the power."""
    iterations: int = Field(ge=1, le=10**6)
    """Of L-BFGS for one C, at most."""
    tolerance: float = Field(gt=0, le=1)
    """It ends where the gradient is this share of that at 0."""
    patience: int = Field(ge=1, le=1000)
    """Values in a row that are no better than the best, after which larger ones are left out."""
    held_out: float = Field(gt=0, lt=1)
    """Share of every class of the training set that judges the values of C."""

    @property
    def costs(self) -> list[float]:
        """The values of C, rising."""
        step = (self.highest - self.lowest) / max(1, self.count - 1)
        return [10 ** (self.lowest + step * i) for i in range(self.count)]

    def __str__(self) -> str:
        parts = [
            f"linear {self.name} v{self.version}",
            "cached centre crops",
            "normalised" if self.normalise else "",
            "standardised" if self.standardise else "",
            f"logistic regression by L-BFGS, at most {self.iterations} iterations, tolerance {self.tolerance:g}",
            f"C of {self.count} values 1e{self.lowest:g} to 1e{self.highest:g} chosen on {self.held_out:.0%} of the "
            f"training set (patience {self.patience})",
        ]
        return "; ".join(filter(None, parts))


def load_protocol(name: str) -> Protocol | LogisticProtocol:
    """A protocol by its name, or by the path of a TOML file.

    Raises:
        UserError: naming the nearest known one, or the key of the file at fault; or when a file of the user's takes the
            name of one of ours.
    """
    path = find_config(name, FOLDER, "protocol")
    protocol = _read(path)
    ours = FOLDER / f"{protocol.name}.toml"
    if ours.is_file() and protocol != _read(ours):
        raise UserError(f"{path} is named {protocol.name!r} but differs from that protocol: give it a name of its own")
    return protocol


def _read(path: Path) -> Protocol | LogisticProtocol:
    return load_toml(LogisticProtocol, path) if "solver" in read_toml(path) else load_toml(Protocol, path)

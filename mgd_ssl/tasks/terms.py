"""The terms of a pretraining from its settings, fitted to student and teacher."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.bags import Bags, load_bags
from mgd_ssl.data.images import Images
from mgd_ssl.distillation.bingo import Bingo
from mgd_ssl.distillation.compress import CompRess
from mgd_ssl.distillation.disco import DisCo
from mgd_ssl.distillation.seed import Seed
from mgd_ssl.distillation.simreg import SimReg, regression_head
from mgd_ssl.distillation.term import CROPS, Term
from mgd_ssl.distillation.weighting import Weight
from mgd_ssl.errors import UserError
from mgd_ssl.networks.heads import output_width
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.term_settings import BingoConfig, CompRessConfig, SeedConfig, TermsConfig, WeightSettings
from moco.keyed import keyed_seed

LOCAL = frozenset({"seed", "disco", "simreg", "compress"})  # terms that draw local crops to the query's target
QUEUED = (SeedConfig, CompRessConfig, BingoConfig)  # settings of terms with a queue


@dataclass(frozen=True)
class Fit:
    """What a term has to fit."""

    config: PretrainConfig
    width: int  # d of the student's pooled feature
    teacher_width: int  # D_t of the teacher's

    def seed_of(self, name: str) -> int:
        """Of what a term draws at the start."""
        return keyed_seed(self.config.seed, name)


def _seed(fit: Fit) -> nn.Module:
    own = fit.config.terms.seed
    temperatures = own.student_temperature, own.teacher_temperature
    return Seed(fit.config.moco.dim, own.queue_size, *temperatures, fit.seed_of("seed queue"))


def _disco(fit: Fit) -> nn.Module:
    return DisCo(fit.config.terms.disco.both_views)


def _simreg(fit: Fit) -> nn.Module:
    layers = fit.config.terms.simreg.layers
    return SimReg(_initial(lambda: regression_head(fit.width, fit.teacher_width, layers), fit.seed_of("simreg head")))


def _compress(fit: Fit) -> nn.Module:
    own = fit.config.terms.compress
    head = _initial(lambda: nn.Linear(fit.width, fit.teacher_width), fit.seed_of("compress head"))
    return CompRess(head, fit.teacher_width, own.queue_size, own.temperature, fit.seed_of("compress queue"))


def _bingo(fit: Fit) -> nn.Module:
    own = fit.config.terms.bingo
    return Bingo(fit.config.moco.dim, own.queue_size, own.temperature, own.warm_epochs, fit.seed_of("bingo queue"))


BUILDERS: dict[str, Callable[[Fit], nn.Module]] = {
    "seed": _seed,
    "disco": _disco,
    "simreg": _simreg,
    "compress": _compress,
    "bingo": _bingo,
}


def _initial(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module drawn from a seed; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def settings_of(terms: TermsConfig) -> dict[str, WeightSettings]:
    """The groups of the terms, by name."""
    return {name: getattr(terms, name) for name in BUILDERS}


def chosen(config: PretrainConfig) -> dict[str, WeightSettings]:
    """Settings of the terms that are built, MGD first: those of a weight above 0."""
    every: dict[str, WeightSettings] = {"mgd": config.mgd, **settings_of(config.terms)}
    return {name: settings for name, settings in every.items() if settings.weight > 0}


def weight_of(settings: WeightSettings, epochs: int) -> Weight:
    """The weight over a run of so many epochs; schedules end with it where nothing else is said."""
    end = math.inf if settings.schedule == "constant" else float(epochs)
    return Weight(
        settings.weight,
        settings.schedule,
        settings.final_share,
        settings.from_epoch,
        end if settings.until_epoch is None else settings.until_epoch,
        settings.balance,
    )


def build_terms(config: PretrainConfig, width: int, teacher: Teacher) -> dict[str, nn.Module]:
    """The terms beside MGD whose weight is above 0, by name, on the CPU.

    Args:
        config: of the run.
        width: d of the student's pooled feature.
        teacher: loaded, with its head where one is needed.

    Raises:
        UserError: when the teacher's embedding is of another size than the student's.
    """
    wanted = [name for name in chosen(config) if name in BUILDERS]
    if not wanted:
        return {}
    if teacher.head is not None and (size := output_width(teacher.head)) != config.moco.dim:
        raise UserError(
            f"the teacher's embeddings have {size} numbers and moco.dim is {config.moco.dim}: set moco.dim to {size}"
        )
    fit = Fit(config, width, _feature_width(teacher, config.data.image_size))
    terms = {name: BUILDERS[name](fit) for name in wanted}
    if config.data.local_crops:
        for name in LOCAL & terms.keys():
            term = cast(Term, terms[name])
            term.needs = term.needs._replace(student=term.needs.student | {CROPS})
    return terms


def wants_head(config: PretrainConfig) -> bool:
    """Whether a term looks at the teacher's embeddings."""
    return not chosen(config).keys().isdisjoint({"seed", "disco", "bingo"})


def _feature_width(teacher: Teacher, size: int) -> int:
    """D_t, found by a look at one image."""
    return teacher.watched(torch.zeros(1, 3, size, size))[1].shape[1]


def bags_of(config: PretrainConfig, images: Images) -> Bags | None:
    """The bags that bingo wants, None where it is not built.

    Raises:
        UserError: when they cannot be read or are of other images.
    """
    path = config.terms.bingo.bags
    return load_bags(path, images, config.seed) if path is not None and "bingo" in chosen(config) else None


def check_terms(config: PretrainConfig) -> None:
    """Raise UserError unless weights, teacher, queues and batch make sense together; no file is looked at."""
    terms, batch = chosen(config), config.optim.batch_size
    _check_crops(config, terms)
    beside = [name for name in terms if name != "mgd"]
    if config.teacher is None:
        if beside:
            raise UserError(
                f"terms.{beside[0]}.weight is {terms[beside[0]].weight:g} and there is no teacher: pass --teacher, or "
                "leave the term out"
            )
        if config.moco.weight == 0:
            raise UserError("moco.weight is 0 and there is no teacher, so nothing is learnt: set it above 0")
        return
    if not terms:
        raise UserError(
            "mgd.weight and the weights of all terms are 0, so the teacher has nothing to say: set one above 0, or "
            "leave the teacher out"
        )
    for name in beside:
        settings = terms[name]
        if isinstance(settings, QUEUED) and settings.queue_size % batch:
            raise UserError(
                f"terms.{name}.queue_size {settings.queue_size} is not a multiple of optim.batch_size {batch}: set it "
                f"to {max(1, round(settings.queue_size / batch)) * batch}, say"
            )
        if isinstance(settings, BingoConfig) and settings.bags is None:
            raise UserError("terms.bingo.bags is not set: make them with `mgd-ssl bags`, and pass its file")
    _check_balance(config, terms)


def _check_crops(config: PretrainConfig, terms: dict[str, WeightSettings]) -> None:
    data = config.data
    if not data.local_crops:
        return
    if config.teacher is None or LOCAL.isdisjoint(terms):
        raise UserError(
            f"data.local_crops is {data.local_crops} and nothing looks at local crops, as MoCo, mgd and bingo compare "
            "whole views: give seed, disco, simreg or compress a weight, or leave it out"
        )
    if data.local_size > data.image_size:
        raise UserError(
            f"data.local_size {data.local_size} is larger than data.image_size {data.image_size}: local crops are to "
            "be the smaller ones"
        )


def balanced_terms(terms: dict[str, WeightSettings]) -> list[str]:
    """Names of those that are held to a share of the contrastive gradient."""
    return [name for name, settings in terms.items() if settings.balance is not None]


def _check_balance(config: PretrainConfig, terms: dict[str, WeightSettings]) -> None:
    balanced = balanced_terms(terms)
    if not balanced:
        return
    key = "mgd.balance" if balanced[0] == "mgd" else f"terms.{balanced[0]}.balance"
    if config.moco.weight == 0:
        raise UserError(
            f"{key} is {terms[balanced[0]].balance:g}, a share of the contrastive loss's gradient, and moco.weight is "
            "0: set that above 0, or give a weight alone"
        )
    if config.runtime.compile:
        raise UserError(f"{key} is set, and gradients are not measured with runtime.compile: leave one of them out")

"""The task of `mgd-ssl classify`: cross entropy with a guide, matching updates and validation between its epochs."""

import io
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.ops import StochasticDepth

from mgd_ssl.classify_settings import ClassifyConfig
from mgd_ssl.data.labelled_crops import LabelledBatch, RandomCrops, SomeOf
from mgd_ssl.data.loader import Reading, one_pass
from mgd_ssl.data.order import TrainingOrder, few_labels, subset
from mgd_ssl.data.ring import ring_workers, view_batches
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.data.sources import Labelled
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.data.upload import Upload
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.distillation.rematch import Maps, padded, rematch, row_of, save_costs, tell
from mgd_ssl.distillation.term import Seen
from mgd_ssl.evaluation.validation import validate
from mgd_ssl.files import write_whole, writing
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.log import logger
from mgd_ssl.run.runtime import on_rank_zero
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.classifier import GuidedClassifier, Mixing
from mgd_ssl.training.schedule import WarmupDecay
from mgd_ssl.training.statistics import share_norm_statistics
from mgd_ssl.training.task import Event
from mgd_ssl.training.update import Update, sgd
from moco.dist import rank, world_size
from moco.keyed import keyed_seed


class Parts(NamedTuple):
    """What a run learns from and is validated on."""

    train: Labelled
    val: Labelled
    chosen: np.ndarray  # [n] which images of `train` are learnt from


def chosen_images(train: Labelled, share: float, seed: int) -> np.ndarray:
    """Sorted indices of the images that are learnt from."""
    return few_labels(train.labels, share, seed) if share < 1 else np.arange(len(train.images))


class Classification:
    """The task of `mgd-ssl classify`; see `mgd_ssl.training.task.Task`.

    Args:
        config: of the run.
        module: student, on the device.
        teacher: on the device, or None.
        parts: labelled images.
        session: of the run, for its folder, device, step and stop.
    """

    def __init__(
        self, config: ClassifyConfig, module: GuidedClassifier, teacher: Teacher | None, parts: Parts, session: Session
    ) -> None:
        self.config, self.module, self.teacher, self.parts = config, module, teacher, parts
        self.session, self.runtime = session, session.runtime
        self.steps_per_epoch = len(parts.chosen) // config.optim.batch_size
        self.total_steps = config.optim.epochs * self.steps_per_epoch
        crop_bytes = 3 * config.data.image_size**2 * config.optim.batch_size // world_size()
        self.workers = ring_workers(self.runtime, config.data.workers, crop_bytes)
        self.upload = Upload(self.runtime)
        self.account = self._account("train", parts.train)
        self.val_account = self._account("val", parts.val)
        self.events = self._events()
        self.best: dict[str, float] = {}  # top1, top5 and the epoch after which they were measured
        self.average: AveragedModel | None = None
        if config.optim.ema:
            follow = get_ema_multi_avg_fn(config.optim.ema)
            self.average = AveragedModel(module.student, multi_avg_fn=follow, use_buffers=True)
        self.draws = any(isinstance(each, nn.Dropout | StochasticDepth) and each.p > 0 for each in module.modules())
        if config.runtime.compile:
            self._compile()

    # steps

    @contextmanager
    def batches(self, first_step: int) -> Iterator[Iterator[LabelledBatch]]:
        """This rank's part of every batch from a step on to the end."""
        data, optim, seed = self.config.data, self.config.optim, self.config.seed
        images, labels = self.parts.train
        dataset = RandomCrops(images, labels, data.crop_scale, data.image_size, seed)
        chosen = self.parts.chosen
        order = TrainingOrder(len(chosen), optim.batch_size, optim.epochs, seed, first_step, rank(), world_size())
        local_batch = optim.batch_size // world_size()
        with view_batches(dataset, SomeOf(order, chosen), local_batch, self.workers, self.runtime.device) as loader:
            yield loader

    def inputs(self, batch: LabelledBatch, step: int) -> tuple[Any, ...]:
        """Images, labels, the guide's targets, and how the images were mixed."""
        self.account.note(batch.unreadable)
        images = self.upload.images(batch.images)  # [N, 3, H, W]
        labels = self.upload.labels(batch.labels)
        mixing: Mixing | None = None
        if self.config.optim.mixup:
            seed = keyed_seed(self.config.seed, "mixup", step, rank())
            mixing = Mixing.draw(self.config.optim.mixup, len(images), seed).to(self.runtime.device)
            images = mixing.mixed(images)
        targets: dict[str, Any] = {}
        if self.teacher is not None:
            with self.runtime.autocast():
                targets = self.module.guide.prepare(Seen(*self.teacher.watched(images)), step)
        if self.draws:  # what dropout drops is a function of the step, wherever the run was resumed
            torch.manual_seed(keyed_seed(self.config.seed, "dropout", step, rank()))
        return images, labels, targets, mixing

    def after_step(self, carried: Any) -> None:
        """What the guide does, and the average of the weights."""
        self.module.guide.after_step()
        if self.average is not None:
            self.average.update_parameters(self.module.student)

    # between two epochs

    def _events(self) -> list[Event]:
        """Matching updates before the first step of an epoch; validation after every epoch but the last, which
        `finish` validates."""
        epochs, mgd, events = self.config.optim.epochs, self.config.mgd, []
        if self.mgd is not None:
            regular = range(0, epochs, mgd.matching_every)
            updates = regular if mgd.matching_epochs is None else {0, *mgd.matching_epochs} & set(range(epochs))
            events.append(Event("matching", tuple(e * self.steps_per_epoch for e in sorted(updates)), self.rematch))
        validated = tuple(epoch * self.steps_per_epoch for epoch in range(1, epochs))
        return [*events, Event("validation", validated, self.validate)]

    @torch.no_grad()
    def rematch(self) -> dict[str, Any]:
        """Update the matching, and tell how it changed."""
        assert self.teacher is not None and self.mgd is not None
        started, epoch = time.monotonic(), self.session.step // self.steps_per_epoch
        config, images = self.config, self.parts.train.images
        share_norm_statistics(self.module.student)
        chosen = self.parts.chosen
        seen = chosen[subset(len(chosen), config.mgd.matching_images, config.seed, "matching")]
        self.module.eval()
        with self.session.log.part("matching", math.ceil(len(seen) / world_size())) as progress:
            reading = replace(self._reading(self.account), progress=progress)
            with one_pass(CentreCrops(images, config.data.image_size, config.seed), seen, reading) as batches:
                crops = (self.upload.images(batch.images) for batch in batches)
                measured = config.mgd.margin == "measured"
                looks: list[Maps[Tensor]] = [self.module.student_maps, self.teacher]
                if config.runtime.compile:
                    looks = [padded(maps, reading.batch_size) for maps in looks]
                changes, costs = rematch(self.mgd, looks[0], looks[1], crops, measured)
        self.module.train()
        on_rank_zero(lambda: save_costs(self.session.out / "matching_costs.npz", costs, epoch))
        tell(changes, epoch)
        return {"epoch": epoch, "seconds": time.monotonic() - started, **row_of(changes)}

    def validate(self) -> dict[str, Any]:
        """Top-1 and top-5 of the student as it is, or of its average; the best so far is kept in mind."""
        epoch = self.session.step // self.steps_per_epoch
        share_norm_statistics(self.left_behind)  # every rank classifies a part, with what is saved
        size = math.ceil(len(self.parts.val.images) / world_size())
        with self.session.log.part("validation", size) as progress:
            reading = replace(self._reading(self.val_account), progress=progress)
            size = self.config.data.image_size
            accuracy, confusion = validate(
                self.left_behind, self.parts.val, self.runtime, image_size=size, reading=reading
            )
        self.val_account.share()
        on_rank_zero(lambda: self._save_confusion(confusion, epoch))
        measured = {"epoch": epoch, **accuracy._asdict()}
        if not self.best or accuracy.top1 > self.best["top1"]:
            self.best = dict(measured)
        logger.info(
            "validation%s after epoch %d: top-1 %.2f, top-5 %.2f (best so far %.2f after epoch %d)",
            " of the averaged weights" if self.average is not None else "",
            epoch, *accuracy, self.best["top1"], self.best["epoch"],
        )  # fmt: skip
        return measured | {"best_top1": self.best["top1"], "best_top5": self.best["top5"]}

    def _save_confusion(self, confusion: Tensor, epoch: int) -> None:
        """Counts [class, what it was taken for] of the newest validation, and the classes' names."""
        content, path = io.BytesIO(), self.session.out / "confusion.npz"
        more = [f"(output {index})" for index in range(len(self.class_names), len(confusion))]  # than classes
        names = [*self.class_names, *more]
        np.savez_compressed(content, counts=confusion.numpy(), epoch=np.array(epoch), names=np.array(names))
        with writing(path):
            write_whole(path, content.getvalue())

    def _reading(self, account: SkippedFiles) -> Reading:
        return Reading(
            batch_size=max(1, self.config.optim.batch_size // world_size()),
            workers=self.workers,
            pin=self.runtime.device.type == "cuda",
            account=account,
            stop=self.session.stop,
        )

    # state

    def state(self) -> dict[str, Any]:
        """`state_dict` has the student's plain keys."""
        return {
            "arch": self.config.student,
            "config": self.config.model_dump(mode="json"),
            "epoch": self.session.step // self.steps_per_epoch,
            "state_dict": self.module.student.state_dict(),
            "guide": self.module.guide.state_dict(),
            "best": self.best,
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.module.student.load_state_dict(state["state_dict"])
        self.module.guide.load_state_dict(state["guide"])
        self.best = state["best"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def finish(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Last validation, and the student with its classifier as a plain state dict."""
        row = self.validate()
        self.session.row("validation", row)
        last = {name: row[name] for name in ("top1", "top5")}
        plain = {name: value.cpu().contiguous() for name, value in self.left_behind.state_dict().items()}
        weights = "averaged" if self.average is not None else "trained"
        return {"validation": last, "best": self.best, "weights": weights}, plain

    # parts

    @cached_property
    def class_names(self) -> list[str]:
        """By class index."""
        return self.parts.train.images.labels()[1]

    @property
    def left_behind(self) -> nn.Module:
        """The network that is validated and left behind: the student, or its average."""
        return self.module.student if self.average is None else self.average.module

    @property
    def mgd(self) -> MGD | None:
        """The matching of the guide, if it has one."""
        matched = dict(self.module.guide.named_terms()).get("mgd")
        return matched.mgd if isinstance(matched, MatchedMaps) else None

    def _account(self, name: str, labelled: Labelled) -> SkippedFiles:
        path = self.session.out / f"skipped_{name}.jsonl"
        account = SkippedFiles(path, labelled.images, self.config.data.max_unreadable)
        self.session.accounts.append(account)
        return account

    def _compile(self) -> None:
        for network in [self.module.student, *([self.teacher.backbone] if self.teacher is not None else [])]:
            network.compile(dynamic=False)  # in place: the names in the state dict stay
        if self.mgd is not None:
            self.mgd.compile(dynamic=False)


def update_of(config: ClassifyConfig, task: Classification) -> Update:
    """SGD with the run's schedule, on all of the task's module."""
    optim = config.optim
    schedule = WarmupDecay(
        optim.lr, optim.epochs, task.steps_per_epoch, optim.lr_schedule, optim.milestones, optim.lr_factor,
        optim.lr_power, optim.warmup_epochs,
    )  # fmt: skip
    optimizer = sgd(task.module.parameters(), optim.lr, optim.momentum, optim.weight_decay, optim.nesterov)
    if not optim.decay_norms:
        (group,) = optimizer.param_groups
        vectors = [parameter for parameter in group["params"] if parameter.ndim <= 1]
        group["params"] = [parameter for parameter in group["params"] if parameter.ndim > 1]
        optimizer.add_param_group({**group, "params": vectors, "weight_decay": 0.0})
    return Update(task.module, optimizer, schedule, task.runtime)

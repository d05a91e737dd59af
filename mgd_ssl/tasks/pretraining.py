"""The task of `mgd-ssl pretrain`: MoCo with a guide, matching updates and k-NN between its epochs."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.images import Images
from mgd_ssl.data.loader import Reading, one_pass
from mgd_ssl.data.order import TrainingOrder, subset
from mgd_ssl.data.ring import ring_workers, view_batches
from mgd_ssl.data.samples import CentreCrops, PretrainBatch, TwoViews, chosen_backend, decoding_of, view_policy
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.data.upload import Upload
from mgd_ssl.distillation.guide import Guide
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.distillation.rematch import Maps, padded, rematch, row_of, save_costs, tell
from mgd_ssl.distillation.term import CROPS
from mgd_ssl.evaluation.monitor import KNNMonitor
from mgd_ssl.mgd.matching import chosen_matching_epochs
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.backbones import initial_encoder, trunk, without_head
from mgd_ssl.networks.placing import placed
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.log import logger
from mgd_ssl.run.runtime import on_rank_zero
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.moco import GuidedMoCo
from mgd_ssl.tasks.sight import Sight
from mgd_ssl.tasks.terms import bags_of
from mgd_ssl.tasks.views import local_crops, mix, pixels_drawn, views_drawn
from mgd_ssl.training.collapse import warning_of
from mgd_ssl.training.schedule import Milestones, WarmupCosine
from mgd_ssl.training.statistics import share_norm_statistics
from mgd_ssl.training.task import Event
from mgd_ssl.training.update import Update, sgd
from moco.dist import rank, world_size
from moco.keyed import keyed_seed

CALIBRATION_IMAGES = 256  # the ranges of a layer are those of millions of values


class Pretraining:
    """The task of `mgd-ssl pretrain`; see `mgd_ssl.training.task.Task`.

    Args:
        config: of the run.
        module: student, on the device.
        teacher: on the device, or None.
        images: training images.
        session: of the run, for its folder, device, step and stop.
    """

    def __init__(
        self, config: PretrainConfig, module: GuidedMoCo, teacher: Teacher | None, images: Images, session: Session
    ) -> None:
        self.config, self.module, self.teacher = config, module, teacher
        self.images, self.session, self.runtime = images, session, session.runtime
        self.steps_per_epoch = len(images) // config.optim.batch_size
        self.total_steps = config.optim.epochs * self.steps_per_epoch
        self.views = views_drawn(module.contrasts, module.guide.needs())
        self.local = local_crops(config.data)
        view_bytes = 3 * pixels_drawn(config.data, len(self.views)) * config.optim.batch_size // world_size()
        self.workers = ring_workers(self.runtime, config.data.workers, view_bytes)
        self.upload = Upload(self.runtime, view_policy(config.data).max_sigma)
        self.sight = Sight(teacher, config.teacher_precision, self.runtime)
        self.account = self._account("train", images)
        self.bags = bags_of(config, images)
        self.monitor = self._monitor()
        self.events = self._events()
        if config.runtime.compile:
            self._compile()

    # steps

    @contextmanager
    def batches(self, first_step: int) -> Iterator[Iterator[PretrainBatch]]:
        """This rank's part of every batch from a step on to the end."""
        data, optim, seed = self.config.data, self.config.optim, self.config.seed
        backend = chosen_backend(data.backend, self.runtime.device)
        logger.info("views: backend %s%s", backend, " (auto)" if data.backend == "auto" else "")
        dataset = TwoViews(self.images, view_policy(data), data.image_size, seed, backend)
        dataset.alone, dataset.bags, dataset.local = self.views == ("query",), self.bags, self.local
        order = TrainingOrder(len(self.images), optim.batch_size, optim.epochs, seed, first_step, rank(), world_size())
        local_batch = optim.batch_size // world_size()
        with view_batches(dataset, order, local_batch, self.workers, self.runtime.device) as loader:
            yield loader

    def inputs(self, batch: PretrainBatch, step: int) -> tuple[Any, ...]:
        """Views, the guide's targets, the seed of shuffled BatchNorm, and views that the student sees too."""
        self.account.note(batch.unreadable)
        views = dict(zip(self.views, self.upload.views(batch), strict=False))  # [N, 3, H, W] each
        epoch, seed = step / self.steps_per_epoch, self.config.seed
        needs = self.guide.needs(epoch)
        if CROPS in needs.student:
            views[CROPS] = self.upload.crops(batch)  # [N L, 3, h, w]
        share = mix(views, seed, step) if "mixed" in needs.student else 1.0
        targets: dict[str, Any] = {}
        if self.teacher is not None:
            seen = self.sight(views, needs)
            with self.runtime.autocast():
                seen.epoch, seen.share = epoch, share
                targets = self.guide.prepare(seen, step)
        self.module.measuring = self._measures(step)
        others = {name: views[name] for name in sorted(needs.student)}
        return views["query"], views.get("key"), targets, keyed_seed(seed, "shuffle", step), others

    def _measures(self, step: int) -> bool:
        """Whether a step looks at gradients and at how evenly features spread; the first one sets the balance."""
        due = step % self.config.terms.measure_every == 0
        return due and (step > 0 or bool(self.guide.balanced))

    def after_step(self, carried: Any) -> None:
        """Enqueue the keys; tell what was measured."""
        if carried is not None:
            self.module.moco.enqueue(carried)
        self.guide.after_step()
        if self.module.measured:
            measured = {name: float(value) for name, value in self.module.measured.items()}
            self.module.measured = {}
            self.session.row("spread", {"epoch": self.session.step / self.steps_per_epoch, **measured})
            if told := warning_of(measured):
                logger.warning("step %d: %s", self.session.step, told)

    # between two epochs

    def _events(self) -> list[Event]:
        """Calibration before the first step; matching updates, then k-NN, both before the first step of an epoch;
        k-NN of the last state too."""
        config, epochs, events = self.config, self.config.optim.epochs, []
        if self.sight.int8:
            events.append(Event("calibration", (0,), self.calibrate))
        if self.mgd is not None:
            regular = chosen_matching_epochs(config.mgd.matching_epochs, epochs)
            acting = [epoch for epoch in regular if "mgd" in self.guide.at(epoch)]
            updates = sorted({int(config.mgd.from_epoch), *acting} & set(range(epochs)))
            events.append(Event("matching", self._starts(updates), self.rematch))
        if self.monitor is not None:
            evaluations = [*range(0, epochs, config.knn.every_epochs), epochs]
            events.append(Event("knn", self._starts(evaluations), self.evaluate))
        return events

    def _starts(self, epochs: Sequence[int]) -> tuple[int, ...]:
        """Finished steps when these epochs start."""
        return tuple(epoch * self.steps_per_epoch for epoch in epochs)

    def calibrate(self) -> dict[str, Any]:
        """Fix the ranges of a teacher in 8 bits by training images."""
        config = self.config
        seen = subset(len(self.images), CALIBRATION_IMAGES, config.seed, "calibration")
        crops = CentreCrops(self.images, config.data.image_size, config.seed)
        with one_pass(crops, seen, replace(self._evaluating(self.account), batch_size=32)) as batches:
            self.sight.calibrate(self.upload.images(batch.images) for batch in batches)
        return {"epoch": 0, "images": len(seen)}

    @torch.no_grad()
    def rematch(self) -> dict[str, Any]:
        """Update the matching, and tell how it changed."""
        assert self.teacher is not None and self.mgd is not None
        started, epoch = time.monotonic(), self.session.step // self.steps_per_epoch
        config = self.config
        share_norm_statistics(self.module.moco.encoder_q)
        crops = CentreCrops(self.images, config.data.image_size, config.seed)
        seen = subset(len(self.images), config.mgd.matching_images, config.seed, "matching")
        self.module.eval()
        with self.session.log.part("matching", math.ceil(len(seen) / world_size())) as progress:
            reading = replace(
                self._evaluating(self.account),
                batch_size=max(1, config.optim.batch_size // world_size()),
                progress=progress,
            )
            student, teacher = self._whole_batches(reading.batch_size)
            with one_pass(crops, seen, reading) as batches:
                images = (self.upload.images(batch.images) for batch in batches)
                measured = config.mgd.margin == "measured"
                changes, costs = rematch(self.mgd, student, teacher, images, measured)
        self.module.train()
        on_rank_zero(lambda: save_costs(self.session.out / "matching_costs.npz", costs, epoch))
        tell(changes, epoch)
        return {"epoch": epoch, "seconds": time.monotonic() - started, **row_of(changes)}

    def _whole_batches(self, size: int) -> tuple[Maps[Tensor], Maps[Tensor]]:
        """Student and teacher for a matching update; compiled ones see batches of one size."""
        assert self.teacher is not None
        if not self.config.runtime.compile:
            return self.module.student_maps, self.teacher
        return padded(self.module.student_maps, size), padded(self.teacher, size)

    def evaluate(self) -> dict[str, Any]:
        """k-NN of the student as it is, beside its initial state and the teacher."""
        assert self.monitor is not None
        share_norm_statistics(self.module.moco.encoder_q)  # every rank classifies a part, with what is saved
        teacher = None if self.teacher is None else trunk(self.teacher.backbone)
        student = trunk(self.module.moco.encoder_q)
        random = self.session.step == 0 and self.config.student_weights is None
        initial = None if random else self._initial_trunk
        return self.monitor.compare(student, initial, teacher, self.session.log, self.session.step)

    def _initial_trunk(self) -> nn.Module:
        """Of the student with random weights."""
        moco = self.config.moco
        encoder = initial_encoder(self.config.student, moco.dim, moco.head_width, self.config.seed)
        return trunk(placed(encoder, self.runtime.device, self.runtime.memory_format))

    def _evaluating(self, account: SkippedFiles) -> Reading:
        pin = self.runtime.device.type == "cuda"
        return Reading(workers=self.workers, pin=pin, account=account, stop=self.session.stop)

    # state

    def state(self) -> dict[str, Any]:
        """`state_dict` reads as an official MoCo checkpoint."""
        return {
            "arch": self.config.student,
            "config": self.config.model_dump(mode="json"),
            "epoch": self.session.step // self.steps_per_epoch,
            "state_dict": {f"module.{name}": value for name, value in self.module.moco.state_dict().items()},
            "guide": self.guide.state_dict(),
            "teacher_ranges": self.sight.state(),
            "knn": self.monitor.state() if self.monitor is not None else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.module.moco.load_state_dict({k.removeprefix("module."): v for k, v in state["state_dict"].items()})
        self.guide.load_state_dict(state["guide"])
        self.sight.load(state.get("teacher_ranges", {}))  # versions before 8 bits saved none
        if self.monitor is not None and state["knn"] is not None:
            self.monitor.load(state["knn"])

    def finish(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Last k-NN, and the student as a plain torchvision state dict."""
        knn: dict[str, float] = {}
        if self.monitor is not None:
            row = self.evaluate()
            self.session.row("knn", row)
            knn = {name: value for name, value in row.items() if name != "protocol"}
        encoder = self.module.moco.encoder_q
        backbone = without_head(encoder, encoder.state_dict())
        return {"knn": knn}, {name: value.cpu().contiguous() for name, value in backbone.items()}

    # parts

    @property
    def guide(self) -> Guide:
        """What the teacher says as loss terms."""
        return self.module.guide

    @property
    def mgd(self) -> MGD | None:
        """The matching of the guide, if it has one."""
        terms = dict(self.guide.named_terms())
        matched = terms.get("mgd")
        return matched.mgd if isinstance(matched, MatchedMaps) else None

    def _account(self, name: str, images: Images) -> SkippedFiles:
        path = self.session.out / f"skipped_{name}.jsonl"
        account = SkippedFiles(path, images, self.config.data.max_unreadable)
        self.session.accounts.append(account)
        return account

    def _monitor(self) -> KNNMonitor | None:
        config = self.config
        if config.knn.train is None and config.knn.val is None:
            return None
        return KNNMonitor(
            config.knn, self.runtime, image_size=config.data.image_size, seed=config.seed,
            skipped=self._account, reading=self._evaluating, decoding=decoding_of(config.data),
        )  # fmt: skip

    def _compile(self) -> None:
        self.module.gradients = False  # compiled backward passes keep nothing for a second one
        moco = self.module.moco
        networks = [moco.encoder_q, moco.encoder_k] if self.module.contrasts else [moco.encoder_q]
        for network in [*networks, *self.sight.networks()]:  # 8 bits come later and are kernels already
            network.compile(dynamic=False)  # in place: the names in the state dict stay
        if self.mgd is not None:
            self.mgd.compile(dynamic=False)


def update_of(config: PretrainConfig, task: Pretraining) -> Update:
    """SGD with warm-up and cosine, on all of the task's module."""
    optim = config.optim
    cosine = WarmupCosine(optim.lr, optim.epochs, task.steps_per_epoch, optim.warmup_epochs, optim.lr_schedule)
    schedule = Milestones(cosine, optim.milestones, optim.lr_factor) if optim.milestones else cosine
    optimizer = sgd(task.module.parameters(), optim.lr, optim.momentum, optim.weight_decay)
    return Update(task.module, optimizer, schedule, task.runtime)

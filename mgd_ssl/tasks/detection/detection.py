"""The task of `mgd-ssl detect`: losses with a guide, matching updates and evaluations between steps."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgd_ssl.data.labelled_crops import SomeOf
from mgd_ssl.data.loader import Reading, batches, one_pass
from mgd_ssl.data.order import TrainingOrder, subset
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.distillation.rematch import rematch, row_of, save_costs, tell_when
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.log import logger
from mgd_ssl.run.runtime import on_rank_zero
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.detection.average_precision import AveragePrecision, average_precision, detect_all, part_of_rank
from mgd_ssl.tasks.detection.coco import Annotated
from mgd_ssl.tasks.detection.config import DetectConfig
from mgd_ssl.tasks.detection.guided_detector import GuidedDetector
from mgd_ssl.tasks.detection.padding import PaddedSeen, masked, padded_for, valid_positions
from mgd_ssl.tasks.detection.samples import DetectionBatch, TrainingImages, WholeImages
from mgd_ssl.tasks.detection.saved import save_detections
from mgd_ssl.tasks.detection.uploaded import Padded, Uploaded
from mgd_ssl.training.statistics import share_norm_statistics
from mgd_ssl.training.task import Event
from moco.dist import rank, world_size
from moco.keyed import keyed_seed

PASSES_OF_1X = 90_000 * 16 / 117_266  # over COCO's training images that have a box


class Parts(NamedTuple):
    """What a run learns from and is evaluated on."""

    train: Annotated
    val: Annotated


def length(config: DetectConfig, num_images: int) -> int:
    """Steps of a run."""
    return config.optim.steps or max(1, round(PASSES_OF_1X * num_images / config.optim.batch_size))


class Detection:
    """The task of `mgd-ssl detect`; see `mgd_ssl.training.task.Task`.

    Args:
        config: of the run.
        module: detector, on the device.
        teacher: on the device, or None.
        parts: images and boxes.
        session: of the run, for its folder, device, step and stop.
    """

    def __init__(
        self, config: DetectConfig, module: GuidedDetector, teacher: Teacher | None, parts: Parts, session: Session
    ) -> None:
        self.config, self.module, self.teacher, self.parts = config, module, teacher, parts
        self.session, self.runtime = session, session.runtime
        self.chosen = parts.train.trainable
        self.steps_per_epoch = len(self.chosen) // config.optim.batch_size
        self.total_steps = length(config, len(self.chosen))
        self.workers = self.runtime.data_workers(config.data.workers)
        self.upload = Uploaded(self.runtime)
        self.account = SkippedFiles(session.out / "skipped_train.jsonl", parts.train.images, config.data.max_unreadable)
        session.accounts.append(self.account)
        self.events = self._events()
        self.last: AveragePrecision | None = None
        if config.runtime.compile:
            self._compile()

    # steps

    @contextmanager
    def batches(self, first_step: int) -> Iterator[Iterator[DetectionBatch]]:
        """This rank's part of every batch from a step on to the end."""
        data, seed, batch_size = self.config.data, self.config.seed, self.config.optim.batch_size
        dataset = TrainingImages(self.parts.train, data.train_sides, data.longest_side, seed)
        epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        order = TrainingOrder(len(self.chosen), batch_size, epochs, seed, first_step, rank(), world_size())
        pin = self.runtime.device.type == "cuda"
        with batches(dataset, SomeOf(order, self.chosen), self.workers, pin) as loader:
            yield loader

    def inputs(self, batch: DetectionBatch, step: int) -> tuple[Any, ...]:
        """Images, their sizes, boxes, and the guide's targets."""
        self.account.note(batch.unreadable)
        seen = self.upload(batch)
        targets: dict[str, Any] = {}
        if self.teacher is not None:
            with self.runtime.autocast():
                maps = self._taught(seen)
            valid = self._valid(seen, maps)
            targets = self.module.guide.prepare(PaddedSeen(maps, valid=valid), step)
        # which anchors and proposals a Faster R-CNN learns from is drawn by torch: a function of the step, as all else
        torch.manual_seed(keyed_seed(self.config.seed, "sampling", step, rank()))
        return seen.images, seen.sizes, batch.targets(self.runtime.device), targets

    def _valid(self, seen: Padded, maps: Sequence[Tensor]) -> list[Tensor]:
        """Where maps are of the image, if padding shall not count."""
        if self.config.mgd.padding == "include":
            return []
        return [valid_positions(seen.sizes, seen.images.shape[2:], map_.shape[2:]) for map_ in maps]

    def after_step(self, carried: Any) -> None:
        """What the guide does."""
        self.module.guide.after_step()

    # between steps

    def _events(self) -> list[Event]:
        events, total = [], self.total_steps
        if self.mgd is not None:
            updates = {0, *(round(share * total) for share in self.config.mgd.matching_at)}
            events.append(Event("matching", tuple(sorted(step for step in updates if step < total)), self.rematch))
        every = self.config.evaluate_every or total
        return [*events, Event("average_precision", tuple(range(every, total, every)), self.evaluate)]

    @torch.no_grad()
    def rematch(self) -> dict[str, Any]:
        """Update the matching by training images as they are validated, and tell how it changed."""
        assert self.teacher is not None and self.mgd is not None
        started, epoch, config = time.monotonic(), self.session.step // self.steps_per_epoch, self.config
        chosen = self.chosen[subset(len(self.chosen), config.mgd.matching_images, config.seed, "matching")]
        dataset = WholeImages(self.parts.train, config.data.val_side, config.data.longest_side)
        share_norm_statistics(self.module.student)
        self.module.eval()
        with (
            self.session.log.part("matching", part_of_rank(len(chosen))) as progress,
            one_pass(dataset, chosen, replace(self._reading(), progress=progress)) as loader,
        ):
            seen = (self.upload(batch) for batch in loader)
            measured = config.mgd.margin == "measured"
            changes, costs = rematch(self.mgd, self._student_maps, self._teacher_maps, seen, measured)
        self.module.train()
        on_rank_zero(lambda: save_costs(self.session.out / "matching_costs.npz", costs, epoch))
        step = self.session.step
        tell_when(changes, f"after step {step}" if step else "before training")
        return {"epoch": epoch, "seconds": time.monotonic() - started, **row_of(changes)}

    def _student_maps(self, seen: Padded) -> list[Tensor]:
        return self._matched(seen, self.module.student_maps(seen.images))

    def _teacher_maps(self, seen: Padded) -> list[Tensor]:
        return self._matched(seen, self._taught(seen))

    def _taught(self, seen: Padded) -> list[Tensor]:
        """The teacher's maps of images."""
        assert self.teacher is not None
        report = self.teacher.report
        images = seen.images if report is None else padded_for(report.normalisation, *seen)
        maps: list[Tensor] = self.teacher(images)
        return maps

    def _matched(self, seen: Padded, maps: list[Tensor]) -> list[Tensor]:
        valid = self._valid(seen, maps)
        return masked(maps, valid) if valid else maps

    def evaluate(self) -> dict[str, Any]:
        """Average precision of the detector as it is."""
        started, data, val = time.monotonic(), self.config.data, self.parts.val
        share_norm_statistics(self.module.student)  # every rank looks at a part, with what is saved
        with self.session.log.part("average precision", part_of_rank(len(val.ids))) as progress:
            reading = replace(self._reading(), progress=progress)
            edges = (data.val_side, data.longest_side)
            found = detect_all(self.module.student, val, self.runtime, edges=edges, reading=reading)
        self.last = on_rank_zero(lambda: average_precision(val, found))
        on_rank_zero(lambda: save_detections(self.session.out / "detections.json", val, found))
        numbers, step = self.last.numbers, self.session.step
        told = ", ".join(f"{name} {_shown(numbers[name])}" for name in ("AP", "AP50", "AP75"))
        logger.info("after step %d: %s (%d boxes found)", step, told, len(found.scores))
        return {"epoch": step / self.steps_per_epoch, "seconds": time.monotonic() - started, **numbers}

    def _reading(self) -> Reading:
        return Reading(
            batch_size=1, workers=self.workers, pin=self.runtime.device.type == "cuda", stop=self.session.stop,
        )  # fmt: skip

    # state

    def state(self) -> dict[str, Any]:
        """`state_dict` has torchvision's keys."""
        return {
            "arch": self.config.student,
            "config": self.config.model_dump(mode="json"),
            "epoch": self.session.step // self.steps_per_epoch,
            "state_dict": self.module.student.network.state_dict(),
            "student": dict(self.module.student.named_buffers(recurse=False)),
            "guide": self.module.guide.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.module.student.network.load_state_dict(state["state_dict"])
        for name, buffer in self.module.student.named_buffers(recurse=False):
            buffer.copy_(state["student"][name])
        self.module.guide.load_state_dict(state["guide"])

    def finish(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Last evaluation, and the detector as a plain state dict."""
        row = self.evaluate()
        self.session.row("average_precision", row)
        assert self.last is not None
        state = self.module.student.network.state_dict()
        plain = {name: value.cpu().contiguous() for name, value in state.items()}
        return {"average_precision": self.last.numbers, "classes": self.last.classes}, plain

    # parts

    @property
    def mgd(self) -> MGD | None:
        """The matching of the guide, if it has one."""
        matched = dict(self.module.guide.named_terms()).get("mgd")
        return matched.mgd if isinstance(matched, MatchedMaps) else None

    def _compile(self) -> None:
        for network in [self.module.student.body, *([self.teacher.backbone] if self.teacher is not None else [])]:
            network.compile(dynamic=True)  # in place: the names in the state dict stay
        if self.mgd is not None:
            self.mgd.compile(dynamic=True)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"

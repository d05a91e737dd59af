"""The training loop: steps, and what happens between them."""

import math
import time
import warnings
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.images import Images
from mgd_ssl.data.loader import PREFETCH
from mgd_ssl.data.order import TrainingOrder, subset
from mgd_ssl.data.ring import view_batches
from mgd_ssl.data.samples import CentreCrops, PretrainBatch, TwoViews, chosen_backend, view_policy
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.data.views_device import finish_views
from mgd_ssl.distillation.rematch import save_costs, share_norm_statistics, update_matching
from mgd_ssl.errors import TrainingError
from mgd_ssl.evaluation.accuracy import Accuracy
from mgd_ssl.evaluation.features import Leaving
from mgd_ssl.evaluation.monitor import KNNMonitor
from mgd_ssl.mgd.matching import chosen_matching_epochs
from mgd_ssl.networks.backbones import initial_encoder, trunk
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.checkpoint import FORMAT, Checkpoints
from mgd_ssl.run.log import RunLog, logger
from mgd_ssl.run.runtime import Runtime, on_rank_zero
from mgd_ssl.run.stop import StopRequest
from mgd_ssl.tasks.moco import DistilledMoCo, Losses
from mgd_ssl.training.meter import Clock, Meter
from mgd_ssl.training.schedule import learning_rate
from mgd_ssl.training.time_left import LEFT_OUT, TimeLeft
from moco.dist import rank, world_size
from moco.keyed import keyed_seed


class Trainer:
    """Everything that lives through a run.

    Args:
        config: of the run.
        method: student, on the device.
        teacher: on the device, or None.
        images: training images.
        runtime: device and precision.
        monitor: k-NN, or None.
        checkpoints: of the run.
        skipped: account of unreadable files.
    """

    def __init__(
        self,
        config: PretrainConfig,
        method: DistilledMoCo,
        teacher: Teacher | None,
        images: Images,
        runtime: Runtime,
        monitor: KNNMonitor | None,
        checkpoints: Checkpoints,
        skipped: SkippedFiles,
    ) -> None:
        self.config, self.method, self.teacher, self.images = config, method, teacher, images
        self.runtime, self.monitor, self.checkpoints, self.skipped = runtime, monitor, checkpoints, skipped
        optim = config.optim
        self.steps_per_epoch = len(images) // optim.batch_size
        self.total_steps = optim.epochs * self.steps_per_epoch
        self.matching_epochs = {0, *chosen_matching_epochs(config.mgd.matching_epochs, optim.epochs)}
        self.step = 0  # finished steps
        self.knn_lines: dict[str, float] = {}  # the random encoder's and the teacher's accuracy
        self.knn_lines_of = ""  # identity of the monitor that measured them
        self.meter = Meter(runtime.device)
        self.time_left = TimeLeft(self.total_steps)
        self.leaving: Leaving = lambda batches, most: batches  # while training, ends the work between two epochs too
        trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        # fused on a GPU: one launch; on a CPU the fused kernel copies channels_last weights to and fro
        self.optimizer = torch.optim.SGD(
            trained, optim.lr, optim.momentum, weight_decay=optim.weight_decay, fused=self.on_gpu
        )
        if optim.momentum:
            # torch's fused kernel leaves them uninitialised when the scaler skips the very first step
            for parameter in trained:
                self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        # on a GPU compiled in any case: half a hundred operations on whole batches become a few
        self.finish_views = torch.compile(finish_views) if self.on_gpu else finish_views
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == torch.float16)
        self.model: torch.nn.Module = method

    def wrap(self) -> None:
        """Compile and distribute the model; call it after its state is in place."""
        if self.config.runtime.compile:
            networks = [self.method.moco.encoder_q, self.method.moco.encoder_k]
            for network in networks + ([self.teacher.backbone] if self.teacher else []):
                network.compile()  # in place: the names in the state dict stay
            if self.method.mgd is not None:
                self.method.mgd.compile()
        if world_size() > 1:
            with warnings.catch_warnings():
                # torch 2.15 has a successor for it, which keeps copying buffers when the model is wrapped
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                # BatchNorm statistics stay each rank's own: MoCo shuffles so that they differ
                self.model = DistributedDataParallel(
                    self.method,
                    device_ids=[self.runtime.device] if self.runtime.device.type == "cuda" else None,
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                )

    # one step

    def train_step(self, batch: PretrainBatch) -> Losses:
        """Forward, backward, update, enqueue."""
        im_q, im_k = self.views(batch)  # [N, 3, H, W]
        with self.runtime.autocast():
            # no name for the targets: they are freed before the backward pass
            losses: Losses = self.model(im_q, im_k, self.targets(im_q), self.seed_of_step("shuffle"))
        self.scaler.scale(losses.total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.moco.enqueue(losses.keys)
        return losses

    def views(self, batch: PretrainBatch) -> list[Tensor]:
        """Normalised query and key views on the device; their colours are done there if the workers left them."""
        views = [self.runtime.upload(pixels) for pixels in (batch.im_q, batch.im_k)]
        if batch.rows is not None:
            max_sigma = view_policy(self.config.data).max_sigma
            rows = self.runtime.upload(batch.rows)
            views = [self.finish_views(*pair, max_sigma) for pair in zip(views, rows, strict=True)]
        return [self.runtime.images(pixels) for pixels in views]

    def targets(self, im_q: Tensor) -> Any:
        """The teacher's maps of the query views, reduced to the student's channels; None without a teacher."""
        if self.teacher is None or self.method.mgd is None:
            return None
        generator = None
        if self.config.mgd.reducer == "random_drop":
            generator = torch.Generator(im_q.device).manual_seed(self.seed_of_step("random drop"))
        return self.method.mgd.reduce(self.teacher(im_q), generator)

    def seed_of_step(self, purpose: str) -> int:
        """Seed of what is drawn in the current step, equal on all ranks."""
        return keyed_seed(self.config.seed, purpose, self.step)

    def set_learning_rate(self) -> float:
        """Learning rate of the current step."""
        optim = self.config.optim
        lr = learning_rate(
            self.step, self.steps_per_epoch, optim.epochs, optim.lr, optim.warmup_epochs, optim.lr_schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    # the loop

    def train(self, log: RunLog) -> int | None:
        """Train to the end, or to the step after which a signal asked to stop.

        Returns:
            The number of that signal, None at the end.
        """
        data, optim = self.config.data, self.config.optim
        backend = chosen_backend(data, self.runtime.device)
        logger.info("views: backend %s%s", backend, " (auto)" if data.backend == "auto" else "")
        dataset = TwoViews(self.images, view_policy(data), data.image_size, self.config.seed, backend)
        order = TrainingOrder(
            len(self.images), optim.batch_size, optim.epochs, self.config.seed, self.step, rank(), world_size()
        )
        self.method.train()
        with ExitStack() as stack:
            stop = stack.enter_context(StopRequest().listening())
            stack.callback(stop.finish)
            stack.callback(setattr, self, "leaving", self.leaving)
            self.leaving = stop.leaving
            local_batch = optim.batch_size // world_size()
            loader = stack.enter_context(view_batches(dataset, order, local_batch, self.workers, self.runtime.device))
            clock = Clock()
            self.time_left = TimeLeft(self.total_steps, max(LEFT_OUT, PREFETCH * self.workers + 1))
            while self.step < self.total_steps:
                if self.step % self.steps_per_epoch == 0:
                    with clock.paused():
                        self.begin_epoch(log)
                batch = clock.next_batch(loader)
                lr = self.set_learning_rate()
                losses = self.train_step(batch)
                self.meter.update(losses, self.step)
                self.skipped.note(batch.unreadable)
                self.step += 1
                self.time_left.finished(self.step)
                if self.step % self.config.runtime.log_every == 0 or self.step == self.total_steps:
                    self.log_step(log, lr, clock)
                stopping = stop.agreed()
                if stopping or self.checkpoint_due():
                    with clock.paused():
                        self.save(log)
                if stopping and self.step < self.total_steps:
                    return stop.signal_number
        return None

    def begin_epoch(self, log: RunLog) -> None:
        """What the epoch that starts now rests on: matching and k-NN of the state so far."""
        epoch = self.step // self.steps_per_epoch
        if self.teacher is not None and epoch in self.matching_epochs:
            with self.time_left.event("matching"):
                self.rematch(log, epoch)
        if self.monitor is not None and epoch % self.config.knn.every_epochs == 0:
            self.evaluate(log)

    def rematch(self, log: RunLog, epoch: int) -> None:
        """Update the matching, and tell how it changed."""
        assert self.teacher is not None
        started = time.monotonic()
        mgd = self.config.mgd
        indices = subset(len(self.images), mgd.matching_images, self.config.seed, "matching")
        with log.part("matching", math.ceil(len(indices) / world_size())) as progress:
            changes = update_matching(
                self.method,
                self.teacher,
                CentreCrops(self.images, self.config.data.image_size, self.config.seed),
                indices,
                self.runtime,
                batch_size=max(1, self.config.optim.batch_size // world_size()),
                workers=self.workers,
                measure_margins=mgd.margin == "measured",
                report=self.skipped.note,
                keep=lambda costs: save_costs(log.folder / "matching_costs.npz", costs, epoch),
                progress=progress,
                leaving=self.leaving,
            )
        row: dict[str, Any] = {"epoch": epoch, "seconds": time.monotonic() - started}
        for i, change in enumerate(changes, start=1):
            row |= {f"stage{i}_{name}": value for name, value in change._asdict().items()}
        log.write("matching", self.step, row)
        told = "; ".join(
            f"stage {i}: {'' if c.cost_before is None else f'{c.cost_before:.4f} -> '}{c.cost_after:.4f}"
            + ("" if c.cost_before is None else f", {c.changed:.0%} changed")
            for i, c in enumerate(changes, start=1)
        )
        when = f"after epoch {epoch}" if epoch else "before training"
        logger.info("matching %s (mean cost of a pair): %s", when, told)

    def evaluate(self, log: RunLog) -> Accuracy:
        """k-NN of the student as it is, beside its initial state and the teacher."""
        assert self.monitor is not None
        share_norm_statistics(self.method.moco.encoder_q)  # every rank classifies a part, with what is saved
        with self.time_left.event("k-NN"), log.part("k-NN of the student", self.monitor.num_images) as progress:
            student = self.monitor.evaluate(trunk(self.method.moco.encoder_q), progress, self.leaving)
        if self.knn_lines_of != self.monitor.identity:
            self.draw_knn_lines(student, log)
        log.write("knn", self.step, {**student._asdict(), **self.knn_lines, "protocol": self.monitor.protocol})
        teacher_top1 = self.knn_lines.get("teacher_top1")
        logger.info(
            "k-NN at step %d: top-1 %.2f, top-5 %.2f (random encoder %.2f%s)",
            self.step,
            *student,
            self.knn_lines["random_top1"],
            "" if teacher_top1 is None else f", teacher {teacher_top1:.2f}",
        )
        return student

    def draw_knn_lines(self, student: Accuracy, log: RunLog) -> None:
        """Measure what the student lies between, the encoder the run began with and the teacher; anew when the k-NN
        evaluation was switched on or changed while the run went on.

        Args:
            student: accuracy of the student as it is.
            log: of the run.
        """
        assert self.monitor is not None
        logger.info("%s", self.monitor.protocol)
        random = student
        if self.step > 0:
            moco = self.config.moco
            encoder = initial_encoder(self.config.student, moco.dim, moco.head_width, self.config.seed)
            encoder.to(self.runtime.device).to(memory_format=self.runtime.memory_format)
            with log.part("k-NN of the random encoder", self.monitor.num_images) as progress:
                random = self.monitor.evaluate(trunk(encoder), progress, self.leaving)
        lines = {"random_top1": random.top1, "random_top5": random.top5}
        if self.teacher is not None:
            with log.part("k-NN of the teacher", self.monitor.num_images) as progress:
                teacher = self.monitor.evaluate(trunk(self.teacher.backbone), progress, self.leaving)
            lines |= {"teacher_top1": teacher.top1, "teacher_top5": teacher.top5}
        self.knn_lines, self.knn_lines_of = lines, self.monitor.identity

    def log_step(self, log: RunLog, lr: float, clock: Clock) -> None:
        """A row of metrics, and the progress line."""
        means = self.meter.means()
        self.meter.check_finite(self.checkpoints.kept)
        self.skipped.share()
        speed = clock.read(self.config.optim.batch_size)
        epoch = self.step / self.steps_per_epoch
        log.write("train", self.step, {"epoch": epoch, **means, "lr": lr, **speed})
        terms = f"loss {means['loss']:.4f}"
        if self.teacher is not None:
            distillation = self.config.mgd.weight * means["distillation"]
            terms += f" = {means['contrastive']:.4f} contrastive + {distillation:.4f} distillation"
        log.progress(
            self.step,
            f"epoch {epoch:.2f}, {terms}, lr {lr:.2g}, {speed['images_per_second']:.0f} images/s, "
            f"{speed['data_wait']:.0%} waiting for data",
            self.time_left.told(self.step, self.events_to_come()),
        )
        self.meter.reset()

    def events_to_come(self) -> dict[str, int]:
        """How many matching updates and k-NN evaluations follow the current step, the last one after training too."""
        epochs = range(math.ceil(self.step / self.steps_per_epoch), self.config.optim.epochs)
        matching = 0 if self.teacher is None else len(self.matching_epochs.intersection(epochs))
        every = self.config.knn.every_epochs
        return {
            "matching": matching,
            "k-NN": 0 if self.monitor is None else 1 + sum(epoch % every == 0 for epoch in epochs),
        }

    # state

    def checkpoint_due(self) -> bool:
        """At the end of every epoch and every so many steps."""
        return self.step % self.steps_per_epoch == 0 or self.step % self.config.checkpoint.every_steps == 0

    def save(self, log: RunLog) -> None:
        """Write a checkpoint, if the losses so far are finite; returns on all ranks when it is whole."""
        self.meter.check_finite(self.checkpoints.kept)
        self.check_weights()
        self.meter.share()
        on_rank_zero(lambda: self.checkpoints.save(self.step, self.state(log.synced_bytes())))

    def check_weights(self) -> None:
        """Raise TrainingError when the last update left the student with weights that are not finite: its loss
        would tell a step later, after they were saved. They are the same on all ranks."""
        finite = torch.stack([parameter.isfinite().all() for parameter in self.method.moco.encoder_q.parameters()])
        if not finite.all():
            raise TrainingError(
                f"the weights after step {self.step} are not finite and {self.checkpoints.kept()}: lower optim.lr or "
                "mgd.weight, or use precision bfloat16 or float32, and start a new --out"
            )

    def state(self, metrics_bytes: int) -> dict[str, Any]:
        """All that a run needs to go on; `state_dict` reads as an official MoCo checkpoint."""
        moco = {f"module.{name}": value for name, value in self.method.moco.state_dict().items()}
        return {
            "format": FORMAT,
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "arch": self.config.student,
            "config": self.config.model_dump(mode="json"),
            "state_dict": moco,
            "mgd": self.method.mgd.state_dict() if self.method.mgd else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "meter": {"sums": self.meter.sums, "num_steps": self.meter.num_steps},
            "knn_lines": self.knn_lines,
            "knn_lines_of": self.knn_lines_of,
            "metrics_bytes": metrics_bytes,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.step = state["step"]
        self.method.moco.load_state_dict({k.removeprefix("module."): v for k, v in state["state_dict"].items()})
        if self.method.mgd is not None:
            self.method.mgd.load_state_dict(state["mgd"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.meter.sums.copy_(state["meter"]["sums"])
        self.meter.num_steps = state["meter"]["num_steps"]
        self.knn_lines, self.knn_lines_of = state["knn_lines"], state.get("knn_lines_of", "")

    @property
    def on_gpu(self) -> bool:
        """Whether this process computes on a GPU."""
        return self.runtime.device.type == "cuda"

    @property
    def workers(self) -> int:
        """Data processes of this process."""
        return self.runtime.data_workers(self.config.data.workers)

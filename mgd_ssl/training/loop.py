"""The one loop: steps of any task, and what happens between them."""

from collections.abc import Sequence
from typing import NamedTuple

from mgd_ssl.run.session import Session
from mgd_ssl.training.meter import Clock, Meter
from mgd_ssl.training.task import Event, StepOutput, Task
from mgd_ssl.training.time_left import LEFT_OUT, TimeLeft
from mgd_ssl.training.update import Update


class Pace(NamedTuple):
    """When a run logs and saves."""

    batch_size: int  # images of a step over all processes
    steps_per_epoch: int
    log_every: int  # steps between two rows
    save_every: int  # steps between two checkpoints; there is one at the end of every epoch too
    under_way: int = 0  # batches made before the first step is taken


def train(task: Task, update: Update, session: Session, pace: Pace) -> None:
    """Train to the end, from where the session stands.

    Raises:
        Interrupted: on all ranks, after a signal asked to stop and the state was saved.
        TrainingError: when a loss or weight is not finite, or nothing can be written.
    """
    record = Record(session, pace, task.events)
    if session.state is not None:
        with session.taking_over():
            task.load(session.state)
            update.load(session.state)
            record.meter.load(session.state["meter"])
    update.distribute()
    task.module.train()
    with session.listening() as stop, task.batches(session.step) as batches:
        record.clock.start()
        while session.step < task.total_steps:
            for event in task.events:
                if event.due(session.step):
                    record.happen(event)
            batch = record.clock.next_batch(batches)
            output = update(task.inputs(batch, session.step), session.step)
            task.after_step(output.carried)
            record.count(output, update.lr)
            stopping = stop.agreed()
            if stopping or record.save_due():
                record.save(task, update)
            if stopping and session.step < task.total_steps:
                raise stop.interrupted(f"after step {session.step}")


class Record:
    """What a training tells and keeps of itself: rows, the progress line, checkpoints.

    Args:
        session: of the run; its step is counted here.
        pace: when to.
        events: of the task.
    """

    def __init__(self, session: Session, pace: Pace, events: Sequence[Event]) -> None:
        self.session, self.pace, self.events = session, pace, events
        self.meter, self.clock = Meter(session.runtime.device), Clock()
        self.time_left = TimeLeft(session.total_steps, max(LEFT_OUT, pace.under_way + 1))

    def happen(self, event: Event) -> None:
        """Run an event, the clock standing still, and write its row."""
        with self.clock.paused(), self.time_left.event(event.name):
            self.session.row(event.name, event.run())

    def count(self, output: StepOutput, lr: float) -> None:
        """A step is finished; a row and a line when they are due."""
        session = self.session
        self.meter.update(output, session.step)
        session.step += 1
        self.time_left.finished(session.step)
        if session.step % self.pace.log_every == 0 or session.step == session.total_steps:
            self._log(lr)

    def _log(self, lr: float) -> None:
        means = self.meter.means()
        self.meter.check_finite(self.session.kept)
        self.session.share_accounts()
        speed = self.clock.read(self.pace.batch_size)
        step = self.session.step
        epoch = step / self.pace.steps_per_epoch
        self.session.row("train", {"epoch": epoch, **means, "lr": lr, **speed})
        losses = " + ".join(f"{means[name]:.4f} {name}" for name in self.meter.losses)
        told = f"loss {means['loss']:.4f}" + (f" = {losses}" if len(self.meter.losses) > 1 else "")
        self.session.log.progress(
            step,
            f"epoch {epoch:.2f}, {told}, lr {lr:.2g}, {speed['images_per_second']:.0f} images/s, "
            f"{speed['data_wait']:.0%} waiting for data",
            self.time_left.told(step, {event.name: event.to_come(step) for event in self.events}),
        )
        self.meter.reset()

    def save_due(self) -> bool:
        """At the end of every epoch and of the run, and every so many steps."""
        step, pace = self.session.step, self.pace
        return step % pace.steps_per_epoch == 0 or step % pace.save_every == 0 or step == self.session.total_steps

    def save(self, task: Task, update: Update) -> None:
        """Write a checkpoint, if losses and weights so far are finite."""
        with self.clock.paused():
            self.meter.check_finite(self.session.kept)
            update.check_finite(self.session.step, self.session.kept)
            self.meter.share()
            self.session.save({**task.state(), **update.state(), "meter": self.meter.state()})

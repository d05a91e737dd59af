"""What is measured between two rows of the log: loss terms on the device, speed on the clock."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mgd_ssl.errors import TrainingError
from mgd_ssl.training.task import StepOutput
from moco.dist import sum_over_ranks, world_size

T = TypeVar("T")


class Meter:
    """Sums of any named losses on the device, read only when a row is logged.

    Args:
        device: of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first_bad_step = torch.full((), math.inf, dtype=torch.float64, device=device)
        self.losses: list[str] = []  # names of the terms of the loss
        self.names: list[str] = []  # of all that is summed, in the order of `sums`
        self.reset()

    def reset(self) -> None:
        """Start a new average."""
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        self.num_steps = 0

    def update(self, output: StepOutput, step: int) -> None:
        """Add a step; notes the first one whose loss is not finite."""
        total = output.total.detach()
        shown = {"loss": total, **output.losses, **output.shown}
        if not self.names:
            self.losses, self.names = list(output.losses), list(shown)
            self.reset()
        self.sums += torch.stack([value.detach().double() for value in shown.values()])
        bad = torch.where(torch.isfinite(total), math.inf, float(step))
        self.first_bad_step = torch.minimum(self.first_bad_step, bad)
        self.num_steps += 1

    def means(self) -> dict[str, float]:
        """Averages over steps and ranks since the last reset: `loss`, its terms, and what is shown beside them."""
        sums = sum_over_ranks(self.sums.clone()) / (max(1, self.num_steps) * world_size())
        return dict(zip(self.names, sums.tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """All that goes on in the next part of a run."""
        return {"losses": self.losses, "names": self.names, "sums": self.sums, "num_steps": self.num_steps}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned.

        Raises:
            ValueError: when there is not one sum for every name.
        """
        self.losses, self.names, self.num_steps = state["losses"], state["names"], state["num_steps"]
        self.sums = state["sums"].to(self.device)
        if self.sums.shape != (len(self.names),):
            raise ValueError(f"meter holds sums {list(self.sums.shape)} of {len(self.names)} losses")

    def share(self) -> None:
        """Give every rank the average of the ranks' sums, so that the state of rank 0 speaks for all."""
        self.sums = sum_over_ranks(self.sums) / world_size()

    def check_finite(self, kept: Callable[[], str]) -> None:
        """Stop all ranks if any of them saw a loss that is not finite.

        Args:
            kept: says which checkpoint remains; none was saved since that step.

        Raises:
            TrainingError: naming the first such step.
        """
        first = self.first_bad_step.clone()
        if world_size() > 1:
            dist.all_reduce(first, op=dist.ReduceOp.MIN)
        if math.isfinite(first.item()):
            raise TrainingError(
                f"the loss of step {int(first)} is not finite and {kept()}: "
                "lower optim.lr or mgd.weight, or use precision bfloat16 or float32, and start a new --out"
            )


class Clock:
    """Images per second and the share of time spent waiting for data, pauses left out."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Count from now on."""
        self.started = time.monotonic()
        self.waited = 0.0
        self.num_batches = 0

    def next_batch(self, loader: Iterator[T]) -> T:
        """The next batch, and account of how long it took to come.

        A loader may tell by `device_wait` how many seconds of it went to a device that was behind: no lack of data.
        """
        asked, held = time.monotonic(), getattr(loader, "device_wait", 0.0)
        batch = next(loader)
        self.waited += time.monotonic() - asked - (getattr(loader, "device_wait", 0.0) - held)
        self.num_batches += 1
        return batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside the block out."""
        began = time.monotonic()
        yield
        self.started += time.monotonic() - began

    def read(self, batch_size: int) -> dict[str, float]:
        """Speed since the last reading, and start anew."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        speed = {
            "images_per_second": self.num_batches * batch_size / elapsed,
            "data_wait": min(1.0, self.waited / elapsed),
        }
        self.start()
        return speed

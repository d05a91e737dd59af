"""Signals that ask to stop, agreed on by all ranks."""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from mgd_ssl.errors import Interrupted
from mgd_ssl.run.runtime import T, logger
from moco.dist import world_size

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


FORWARDED = 1.0  # seconds within which a second Ctrl-C is the first one, passed on by torchrun


class StopRequest:
    """A signal asks to stop; all ranks agree on the step after which they do.

    The agreement is a small sum over gloo that is started after one step and read after the next one, so that no
    step waits for it or for the GPU.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._noted = 0.0
        self._pending: tuple[Tensor, dist.Work] | None = None

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Obey SIGTERM, SIGINT, SIGUSR2 and SIGHUP inside the block.

        Those that are ignored stay so: a shell starts a job in the background with SIGINT ignored, nohup with SIGHUP.
        """
        heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        if deaf := [number.name for number in STOP_SIGNALS if number not in heard]:
            logger.info("%s ignored since the start, as by nohup or in the background", " and ".join(deaf))
        previous = {number: signal.signal(number, self._note) for number in heard}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.signal_number == number == signal.SIGINT and time.monotonic() - self._noted > FORWARDED
        if again:  # a second Ctrl-C: the user does not want to wait
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if not self.signal_number:
            self.signal_number, self._noted = number, time.monotonic()

    def agreed(self) -> bool:
        """Whether all ranks stop now, `signal_number` then being the same on all of them; call it once after every
        step, on all of them."""
        if world_size() == 1:
            return self.signal_number != 0
        agreed = 0
        if self._pending is not None:
            number, work = self._pending
            work.wait()
            agreed = int(number)
        if agreed:
            self.signal_number, self._pending = agreed, None
        else:
            number = torch.tensor(self.signal_number)
            # SIGTERM, which ends a job, is greater than SIGUSR2, SIGINT and SIGHUP
            handle = dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True)
            assert handle is not None
            self._pending = number, handle
        return agreed != 0

    def leaving(self, batches: Iterator[T], most: int) -> Iterator[T]:
        """The same batches, until all ranks agree to stop.

        Args:
            batches: of this rank.
            most: batches of the rank that has most of them, equal on all ranks.

        Raises:
            Interrupted: on all ranks together.
        """
        for _ in range(most):
            if self.agreed():
                raise self.interrupted("between two epochs")
            yield from itertools.islice(batches, 1)

    def interrupted(self, when: str) -> Interrupted:
        """What to raise when all ranks agreed to stop, and their state is saved."""
        name = signal.Signals(self.signal_number).name
        return Interrupted(f"stopped by {name} {when}: the same command continues from there", self.signal_number)

    def finish(self) -> None:
        """Wait for an agreement under way, so that the process group can be taken down."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None

"""How batches come from the data workers to the training process: through memory that is used again and again.

A fresh piece of shared memory for every batch costs more than the copy into it, as each of its pages is mapped anew
in both processes. Here the workers write into the slots of a ring and send the slot's number.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import Dataset

from mgd_ssl.data.images import Unreadable
from mgd_ssl.data.loader import PREFETCH, batches
from mgd_ssl.data.space import Space
from mgd_ssl.errors import UserError, out_of_files
from mgd_ssl.run.log import logger
from mgd_ssl.run.runtime import Runtime

PINNED_BYTES = 2**32  # of a process's ring at most, unless more workers are asked for
SPARE = 2  # slots more with a GPU, which may still be copying from them while the workers have all the others

Key = tuple[int, int]
Filled = tuple[int, int, list[Unreadable]]  # slot, images in it, what could not be decoded
Batch = TypeVar("Batch", covariant=True)


class Filling(Protocol[Batch]):
    """A data set that writes its batches to memory it is given."""

    def space(self, num_images: int) -> Space:
        """Memory for a batch."""
        ...

    def fill(self, keys: Sequence[Key], space: Space) -> list[Unreadable]:
        """Write a batch; what there is to tell of its files is returned."""
        ...

    def batch(self, space: Space, unreadable: list[Unreadable]) -> Batch:
        """What `fill` has written, in place."""
        ...


class Ring(Generic[Batch]):
    """Slots of shared memory: given out to be filled in turn, and given back when their batch was used.

    Args:
        dataset: what fills them.
        batch_size: the most images there are in a batch.
        num_slots: batches there is room for.
        device: of the training.

    Raises:
        UserError: when there is not enough shared memory.
    """

    def __init__(self, dataset: Filling[Batch], batch_size: int, num_slots: int, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.device_wait = 0.0  # seconds waited so far for the device, not for data
        spaces = [dataset.space(batch_size) for _ in range(num_slots)]
        try:
            self.spaces = [space.each(lambda tensor: tensor.share_memory_()) for space in spaces]
        except RuntimeError as error:
            megabytes = num_slots * sum(tensor.nbytes for tensor in spaces[0].tensors) // 2**20
            raise out_of_files(error) or UserError(
                f"the data workers need {megabytes} MB of shared memory, and there is not as much ({error}): "
                "lower data.workers or optim.batch_size, or raise the container's --shm-size"
            ) from error
        self._free: deque[tuple[int, torch.cuda.Event | None]] = deque((slot, None) for slot in range(num_slots))

    def addressed(self, keys: Iterable[Sequence[Key]]) -> Iterator[tuple[int, Sequence[Key]]]:
        """The keys of every batch with the slot it shall be written to."""
        for batch in keys:
            assert self._free, "more batches are under way than there are slots"
            slot, copied = self._free.popleft()
            if copied is not None:
                asked = time.monotonic()
                copied.synchronize()  # waits where the device is some batches behind
                self.device_wait += time.monotonic() - asked
            yield slot, batch

    def read(self, filled: Iterable[Filled]) -> Iterator[Batch]:
        """The batches, in place; each is overwritten some time after the next one is asked for."""
        for slot, count, unreadable in filled:
            yield self.dataset.batch(self.spaces[slot].first(count), unreadable)
            self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        copied = None
        if self.device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self.device))
        self._free.append((slot, copied))


class RingBatches(Iterator[Batch]):
    """The batches that `Ring.read` gives, which also tell how long the device was waited for meanwhile."""

    def __init__(self, ring: Ring[Batch], filled: Iterable[Filled]) -> None:
        self._ring, self._batches = ring, ring.read(filled)

    def __next__(self) -> Batch:
        return next(self._batches)

    @property
    def device_wait(self) -> float:
        """Seconds so far."""
        return self._ring.device_wait


class _Slots(Dataset[Filled]):
    """What the workers see: fills the slot that comes with the keys."""

    def __init__(self, dataset: Filling[Any], spaces: list[Space]) -> None:
        self.dataset, self.spaces = dataset, spaces

    def __getitems__(self, request: tuple[int, Sequence[Key]]) -> Filled:
        slot, keys = request
        return slot, len(keys), self.dataset.fill(keys, self.spaces[slot])


def ring_workers(runtime: Runtime, wanted: int | None, batch_bytes: int) -> int:
    """Data processes for this process: those of `Runtime.data_workers`, but with a GPU and unless told otherwise no
    more than a ring of `PINNED_BYTES` has slots for: a host with hundreds of cores would pin tens of GB.

    Args:
        runtime: of this process.
        wanted: by the settings.
        batch_bytes: of a slot.
    """
    workers = runtime.data_workers(wanted)
    if wanted is not None or runtime.device.type != "cuda":
        return workers
    return max(1, min(workers, (PINNED_BYTES // batch_bytes - 1 - SPARE) // PREFETCH))


@contextmanager
def view_batches(
    dataset: Filling[Batch], keys: Iterable[Sequence[Key]], batch_size: int, workers: int, device: torch.device
) -> Iterator[Iterator[Batch]]:
    """Iterator over the batches of a training; the workers end with the block.

    A batch may be read until the next one is asked for; then its memory is written to again. On a GPU copies that
    were started until then are waited for.

    Args:
        dataset: of the views.
        keys: of each batch, at most `batch_size`.
        batch_size: the most images there are in a batch.
        workers: processes; 0 renders in this one. Same batches for any number.
        device: of the training.
    """
    # under way are PREFETCH batches a worker, and the one that is in use while another takes its place
    num_slots = PREFETCH * workers + 1 + (SPARE if device.type == "cuda" else 0)
    ring = Ring(dataset, batch_size, num_slots, device)
    with (
        _pinned(ring, device),
        batches(_Slots(dataset, ring.spaces), ring.addressed(keys), workers, pin=False) as filled,
    ):
        yield RingBatches(ring, filled)


@contextmanager
def _pinned(ring: Ring[Any], device: torch.device) -> Iterator[None]:
    """Lock the ring's memory for copies to a GPU that do not wait; without a GPU do nothing."""
    if device.type != "cuda":
        yield
        return
    cuda = torch.cuda.cudart()
    tensors = [tensor for space in ring.spaces for tensor in space.tensors]
    locked = [tensor for tensor in tensors if int(cuda.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)) == 0]
    if len(locked) < len(tensors):
        _take_error(device)
        logger.warning("the memory of the data workers could not be pinned, so copies to the GPU will wait for it")
    try:
        yield
    finally:
        for tensor in locked:
            cuda.cudaHostUnregister(tensor.data_ptr())


def _take_error(device: torch.device) -> None:
    """Launch something that raises what a failed call has left behind: else the next launch would."""
    with suppress(RuntimeError):
        torch.zeros(1, device=device)

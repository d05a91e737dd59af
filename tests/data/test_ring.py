"""Batches through shared memory that is used again: none is overwritten too early, and they are those made without."""

import multiprocessing
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.images import Unreadable
from mgd_ssl.data.ring import SPARE, Ring, RingBatches, ring_workers, view_batches
from mgd_ssl.data.samples import Backend, PretrainBatch, TwoViews
from mgd_ssl.errors import UserError
from mgd_ssl.run.runtime import Runtime
from moco import ViewPolicy
from tests.conftest import write_images

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CPU = torch.device("cpu")
Keys = list[tuple[int, int]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageList:
    root = tmp_path_factory.mktemp("photos")
    paths = write_images(root, 12)
    paths[5].write_bytes(b"")
    return ImageList.scan(root)


class Uneven(TwoViews):
    """Takes longer for some batches, so that workers overtake one another."""

    def fill(self, keys: Sequence[tuple[int, int]], space: object) -> list[Unreadable]:
        time.sleep(0.02 * (keys[0][0] % 3))
        return super().fill(keys, space)  # type: ignore[arg-type]


def order(num_batches: int, size: int = 4) -> list[Keys]:
    return [[(batch, (batch + i) % 12) for i in range(size)] for batch in range(num_batches)]


def copied(batch: PretrainBatch) -> PretrainBatch:
    rows = None if batch.rows is None else batch.rows.clone()
    return PretrainBatch(batch.im_q.clone(), batch.im_k.clone(), batch.unreadable, rows)


def assert_same(one: PretrainBatch, two: PretrainBatch) -> None:
    assert torch.equal(one.im_q, two.im_q) and torch.equal(one.im_k, two.im_k)
    assert one.unreadable == two.unreadable
    assert (one.rows is None) == (two.rows is None)
    if one.rows is not None and two.rows is not None:
        assert torch.equal(one.rows, two.rows)


def through_the_ring(dataset: TwoViews, keys: Iterable[Keys], workers: int, pause: float = 0) -> list[PretrainBatch]:
    found = []
    with view_batches(dataset, keys, 4, workers, CPU) as iterator:
        for batch in iterator:
            time.sleep(pause)  # a batch is whole until the next one is asked for, however long that takes
            found.append(copied(batch))
    assert not multiprocessing.active_children()
    return found


@pytest.mark.parametrize("backend", get_args(Backend))
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_those_made_without_the_ring(photos: ImageList, workers: int, backend: Backend) -> None:
    dataset = TwoViews(photos, ViewPolicy(), 24, 0, backend)
    keys = order(8)
    for batch, each in zip(through_the_ring(dataset, keys, workers), keys, strict=True):
        assert_same(batch, dataset.__getitems__(each))


@pytest.mark.parametrize("pause", [0, 0.03])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_no_batch_is_overwritten_before_the_next_is_asked_for(photos: ImageList, workers: int, pause: float) -> None:
    dataset = Uneven(photos, ViewPolicy(), 16, 0, "device")
    keys = order(30)
    assert len(keys) > 4 * (2 * workers + 1)  # every slot is used several times
    plain = TwoViews(photos, ViewPolicy(), 16, 0, "device")
    for batch, each in zip(through_the_ring(dataset, keys, workers, pause), keys, strict=True):
        assert_same(batch, plain.__getitems__(each))


def test_smaller_batches_fill_part_of_a_slot(photos: ImageList) -> None:
    dataset = TwoViews(photos, ViewPolicy(), 16, 0)
    keys = [order(1, size)[0] for size in (4, 1, 3, 4)]
    for batch, each in zip(through_the_ring(dataset, keys, 1), keys, strict=True):
        assert_same(batch, dataset.__getitems__(each))


def test_slots_are_used_again_in_turn(photos: ImageList) -> None:
    addresses = []
    with view_batches(TwoViews(photos, ViewPolicy(), 16, 0), order(20), 4, 2, CPU) as iterator:
        for batch in iterator:
            addresses.append(batch.im_q.data_ptr())
    assert len(set(addresses[:5])) == 5
    assert addresses == addresses[:5] * 4


def test_a_slot_is_not_given_out_while_its_batch_is_in_use(photos: ImageList) -> None:
    ring = Ring(TwoViews(photos, ViewPolicy(), 16, 0), 4, 2, CPU)
    addressed = ring.addressed(order(4))
    filled = [(slot, len(keys), list[Unreadable]()) for slot, keys in (next(addressed), next(addressed))]
    with pytest.raises(AssertionError):
        next(addressed)
    batches = ring.read(filled)
    next(batches)
    addressed = ring.addressed(order(4))
    with pytest.raises(AssertionError):  # the first batch is being used
        next(addressed)
    next(batches)
    assert next(ring.addressed(order(4)))[0] == filled[0][0]


def test_on_a_gpu_copies_from_a_slot_are_waited_for_before_it_is_given_out(
    photos: ImageList, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Event:
        def record(self, stream: str) -> None:
            told.append(f"recorded on {stream}")

        def synchronize(self) -> None:
            time.sleep(0.01)
            told.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    ring = Ring(TwoViews(photos, ViewPolicy(), 16, 0), 4, 1, torch.device("cuda"))
    slots = ring.addressed(order(2))
    batches = ring.read((slot, len(keys), []) for slot, keys in slots)
    next(batches)
    assert told == []
    next(batches)
    assert told == ["recorded on the stream of cuda", "waited"]
    assert ring.device_wait >= 0.01


def test_batches_tell_how_long_the_device_was_waited_for(photos: ImageList) -> None:
    ring = Ring(TwoViews(photos, ViewPolicy(), 16, 0), 4, 1, CPU)
    batches = RingBatches(ring, ((slot, len(keys), []) for slot, keys in ring.addressed(order(2))))
    ring.device_wait = 1.5
    assert len(list(batches)) == 2
    assert batches.device_wait == 1.5


@pytest.mark.parametrize(
    ("wanted", "batch_bytes", "workers"), [(None, 2**20, 200), (None, 2**26, 30), (None, 2**33, 1), (77, 2**26, 77)]
)
def test_bytes_bound_the_ring_of_a_large_host(
    monkeypatch: pytest.MonkeyPatch, wanted: int | None, batch_bytes: int, workers: int
) -> None:
    monkeypatch.setenv("MGD_SSL_CORES", "200")
    runtime = Runtime(torch.device("cuda"), None, torch.channels_last, 1)
    assert ring_workers(runtime, wanted, batch_bytes) == workers
    assert ring_workers(replace(runtime, device=CPU), wanted, batch_bytes) == (wanted or 1)


class Cudart:
    """Takes note of what is locked, or refuses to lock anything."""

    def __init__(self, failing: bool) -> None:
        self.failing, self.locked, self.asked = failing, set[int](), 0
        self.error_left = False

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:
        assert size > 0 and flags == 0
        self.asked += 1
        if not self.failing:
            self.locked.add(pointer)
        self.error_left = self.failing
        return int(self.failing)

    def cudaHostUnregister(self, pointer: int) -> None:
        self.locked.remove(pointer)

    def launch(self, *args: object, **kwargs: object) -> None:
        """As CUDA does: a launch raises what a failed call has left behind."""
        if self.error_left:
            self.error_left = False
            raise RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize("failing", [False, True])
def test_on_a_gpu_the_ring_is_pinned_where_that_works(
    photos: ImageList, monkeypatch: pytest.MonkeyPatch, failing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cudart = Cudart(failing)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch, "zeros", cudart.launch)
    with view_batches(TwoViews(photos, ViewPolicy(), 16, 0), order(1), 4, 0, torch.device("cuda")):
        assert cudart.asked == 2 * (1 + SPARE)
        assert len(cudart.locked) == (0 if failing else cudart.asked)
        cudart.launch()  # the training's own
    assert not cudart.locked
    assert ("could not be pinned" in caplog.text) == failing


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_ends_in_its_sentence(tmp_path: Path, workers: int) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    dataset = TwoViews(ImageList.scan(tmp_path), ViewPolicy(), 16, 0)
    with pytest.raises(UserError, match=r"^50 images tried in a row are unreadable"):
        through_the_ring(dataset, [[(0, 0)]], workers)
    assert not multiprocessing.active_children()


def test_workers_end_when_the_block_is_left_early(photos: ImageList) -> None:
    with view_batches(TwoViews(photos, ViewPolicy(), 16, 0), order(50), 4, 2, CPU) as iterator:
        next(iterator)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def test_too_little_shared_memory_is_told(photos: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(UserError, match=r"need 6 MB of shared memory.*: lower data.workers or optim.batch_size"):
        Ring(TwoViews(photos, ViewPolicy(), 512, 0), 2, 2, CPU)

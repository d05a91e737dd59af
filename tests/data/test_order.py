"""The order of images over epochs and ranks, and subsets of them."""

import numpy as np
import pytest

from mgd_ssl.data.order import TrainingOrder, chunks, subset

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def order(num_images: int = 103, batch: int = 12, epochs: int = 3, seed: int = 0, **where: int) -> TrainingOrder:
    place = {"first_step": 0, "rank": 0, "world_size": 1, **where}
    return TrainingOrder(num_images, batch, epochs, seed, **place)


def test_every_epoch_is_a_permutation_without_its_rest() -> None:
    steps = list(order())
    assert len(steps) == len(order()) == 3 * (103 // 12)
    firsts = []
    for epoch in range(3):
        seen = [key for step in steps[epoch * 8 : epoch * 8 + 8] for key in step]
        assert all(key[0] == epoch for key in seen)
        assert len({index for _, index in seen}) == len(seen) == 96
        assert all(0 <= index < 103 for _, index in seen)
        firsts.append([index for _, index in seen])
    assert firsts[0] != firsts[1] != firsts[2] != sorted(firsts[2])
    assert list(order()) == steps != list(order(seed=1))


def test_epochs_that_divide_evenly_hold_every_image_once() -> None:
    seen = [index for step in order(num_images=60, epochs=1) for _, index in step]
    assert sorted(seen) == list(range(60))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
def test_parts_of_the_ranks_tile_the_batch_of_one_process(world_size: int) -> None:
    parts = [list(order(rank=rank, world_size=world_size)) for rank in range(world_size)]
    together = [[key for part in step for key in part] for step in zip(*parts, strict=True)]
    assert together == list(order())


@pytest.mark.parametrize("first_step", [0, 1, 7, 8, 9, 16, 23, 24])
def test_starting_later_yields_the_tail(first_step: int) -> None:
    late = order(first_step=first_step)
    assert list(late) == list(order())[first_step:]
    assert len(late) == 24 - first_step


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    assert list(order(epochs=5))[:24] == list(order())


# choosing


def test_subset_is_sorted_unique_and_depends_on_seed_and_purpose() -> None:
    chosen = subset(1000, 100, seed=0, purpose="bank")
    assert chosen.tolist() == sorted(set(chosen.tolist())) and len(chosen) == 100
    assert chosen.min() >= 0 and chosen.max() < 1000
    assert np.array_equal(chosen, subset(1000, 100, seed=0, purpose="bank"))
    assert not np.array_equal(chosen, subset(1000, 100, seed=1, purpose="bank"))
    assert not np.array_equal(chosen, subset(1000, 100, seed=0, purpose="matching"))


def test_subset_of_no_more_than_there_are() -> None:
    assert subset(10, 10, 0, "x").tolist() == subset(10, 99, 0, "x").tolist() == list(range(10))
    assert subset(1, 1, 0, "x").tolist() == [0]


def test_subset_is_even() -> None:
    counts = np.bincount(np.concatenate([subset(50, 10, seed, "x") for seed in range(2000)]), minlength=50)
    deviation = np.sqrt(2000 * 0.2 * 0.8)
    assert np.abs(counts - 400).max() < 4.5 * deviation


def test_chunks_are_consecutive() -> None:
    assert chunks(np.arange(7), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert chunks(np.arange(0), 3) == []

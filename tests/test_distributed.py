"""Several processes are one: same matching, same queue, same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mgd_ssl import MatchingStatistics
from tests.rank_work import all_checks, join_and_exchange
from tests.ranks import on_ranks
from tests.runs import differing


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, teacher_file: Path) -> dict[int, list[Any]]:
    """What one process and what two found."""
    base = tmp_path_factory.mktemp("ranks")
    args = all_checks, image_folder, teacher_file, base
    return {count: on_ranks(count, base / str(count), *args) for count in (1, 2)}


def test_gathered_batch_is_in_the_order_of_the_ranks(found: dict[int, list[Any]]) -> None:
    local = torch.arange(6.0).view(3, 2)
    for one in found[2]:
        assert torch.equal(one["collectives"]["gathered"], torch.cat([local, local + 100]))


def test_shuffled_batches_are_a_permutation_of_the_global_batch(found: dict[int, list[Any]]) -> None:
    parts = [one["collectives"]["shuffled"] for one in found[2]]
    gathered = found[2][0]["collectives"]["gathered"]
    together = torch.cat(parts)
    assert not torch.equal(together, gathered)
    assert sorted(together.tolist()) == sorted(gathered.tolist())
    assert any(row.min() >= 100 for row in parts[0])  # images have moved to another rank


def test_unshuffling_undoes_shuffling(found: dict[int, list[Any]]) -> None:
    assert all(one["collectives"]["unshuffled"] for one in found[2])


def test_images_are_exchanged_as_a_gathered_batch_would_be_shuffled(found: dict[int, list[Any]]) -> None:
    assert all(one["collectives"]["images"] for one in found[2])


def test_ranks_agree_on_the_step_they_stop_after(found: dict[int, list[Any]]) -> None:
    agreed = [one["collectives"]["agreed"] for one in found[2]]
    assert agreed[0] == agreed[1]
    assert agreed[0][-1] and 4 <= len(agreed[0]) <= 6  # soon after the signal before call 4


def test_three_ranks_exchange_unequal_parts(tmp_path: Path) -> None:
    assert on_ranks(3, tmp_path / "ranks", join_and_exchange) == [True] * 3


def test_result_and_error_of_rank_zero_reach_all(found: dict[int, list[Any]]) -> None:
    assert [one["collectives"]["shared"] for one in found[2]] == ["from rank 0"] * 2


def test_matching_does_not_depend_on_the_number_of_ranks(found: dict[int, list[Any]]) -> None:
    [single] = (one["match"] for one in found[1])
    for one in (one["match"] for one in found[2]):
        assert one["costs"] == pytest.approx(single["costs"], rel=1e-6)
        groups = [[a.sort(dim=1).values for a in match["assignments"]] for match in (one, single)]
        assert differing(groups[0], groups[1]) == []
        torch.testing.assert_close(one["margins"], single["margins"], rtol=1e-5, atol=1e-6)


def test_weights_and_queue_do_not_depend_on_the_number_of_ranks(found: dict[int, list[Any]]) -> None:
    [single] = (one["train"]["state"] for one in found[1])
    assert int(single["moco.queue_ptr"]) == 5 * 8 % 24
    for one in (one["train"]["state"] for one in found[2]):
        assert one.keys() == single.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, single[name], rtol=1e-5, atol=1e-6, msg=name)


def test_terms_do_not_depend_on_the_number_of_ranks(found: dict[int, list[Any]]) -> None:
    [single] = (one["terms"] for one in found[1])
    for one in (one["terms"] for one in found[2]):
        assert one["state"].keys() == single["state"].keys()
        for name, value in one["state"].items():
            torch.testing.assert_close(value, single["state"][name], rtol=1e-5, atol=2e-6, msg=name)
        for ours, theirs in zip(one["measured"], single["measured"], strict=True):
            assert ours.keys() == theirs.keys() >= {"gradient_seed", "gradient_disco", "embedding_rank"}
            for name, value in ours.items():
                torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-7, msg=name)
    mean = torch.stack([one["terms"]["losses"] for one in found[2]]).mean(dim=0)
    torch.testing.assert_close(mean, single["losses"], rtol=1e-5, atol=1e-5)
    assert (mean == 0).sum() == 2 + 2  # disco in the last two steps, simreg in the first two


def test_split_batch_norms_in_one_process_are_those_of_two(found: dict[int, list[Any]]) -> None:
    [single] = (one["norms"] for one in found[1])
    mean = torch.stack([one["norms"]["losses"] for one in found[2]]).mean(dim=0)
    torch.testing.assert_close(mean, single["losses"], rtol=1e-4, atol=1e-5)
    for number, one in enumerate(one["norms"]["state"] for one in found[2]):
        assert one.keys() == single["state"].keys()
        for name, value in one.items():
            if number == 0 or "running" not in name:  # rank 0's statistics are what is saved
                torch.testing.assert_close(value, single["state"][name], rtol=1e-3, atol=1e-4, msg=name)
    statistic = "moco.encoder_k.bn1.running_mean"
    assert (found[2][0]["norms"]["state"][statistic] - found[2][1]["norms"]["state"][statistic]).abs().max() > 1e-3


def test_mean_of_the_ranks_losses_is_the_loss_of_one_process(found: dict[int, list[Any]]) -> None:
    mean = torch.stack([one["train"]["losses"] for one in found[2]]).mean(dim=0)
    torch.testing.assert_close(mean, found[1][0]["train"]["losses"], rtol=1e-5, atol=1e-5)


def test_statistics_of_parts_add_up_to_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 4, 5, 5, generator=generator), torch.randn(6, 8, 5, 5, generator=generator)
    whole, parts = MatchingStatistics([4], [8]), [MatchingStatistics([4], [8]) for _ in range(2)]
    whole.update([student], [teacher])
    for i, one in enumerate(parts):
        one.update([student[i::2]], [teacher[i::2]])
    for total, *shares in zip(whole.tensors(), *(one.tensors() for one in parts), strict=True):
        torch.testing.assert_close(total, sum(shares), rtol=1e-6, atol=0)

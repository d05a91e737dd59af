"""Costs and assignments against naive loops and the optimum."""

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mgd_ssl.mgd.matching import MatchingStatistics, assign, matching_cost, total_cost
from tests.mgd.drawn import generator, randn

# matching


def naive_cost(s: Tensor, t: Tensor) -> Tensor:
    cost = torch.zeros(s.shape[1], t.shape[1], dtype=torch.float64)
    for n, i, j in itertools.product(range(s.shape[0]), range(s.shape[1]), range(t.shape[1])):
        a, b = s[n, i].double().ravel(), t[n, j].double().ravel()
        cost[i, j] += ((a / a.norm() - b / b.norm()) ** 2).sum()
    return cost


def test_cost_is_the_squared_distance_of_normalised_maps() -> None:
    s, t = randn(5, 4, 3, 3), randn(5, 6, 3, 3, seed=1)
    torch.testing.assert_close(matching_cost(s, t).double(), naive_cost(s, t), rtol=1e-6, atol=1e-6)


def test_cost_is_the_sum_over_images_in_either_memory_format() -> None:
    s, t = randn(7, 4, 3, 3), randn(7, 6, 3, 3, seed=1)
    each = sum(matching_cost(s[n : n + 1], t[n : n + 1]) for n in range(7))
    for layout in (torch.contiguous_format, torch.channels_last):
        found = matching_cost(s.to(memory_format=layout), t.to(memory_format=layout))
        torch.testing.assert_close(found, each)


def test_a_dead_channel_costs_as_much_as_an_orthogonal_one() -> None:
    assert torch.equal(matching_cost(torch.zeros(2, 3, 4, 4), randn(2, 3, 4, 4)), torch.full((3, 3), 4.0))


def test_cost_refuses_maps_of_different_size() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 4\].*\[2, 3, 5, 4\]"):
        matching_cost(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 5, 4))


@pytest.mark.parametrize(("c_s", "c_t"), [(2, 4), (3, 3), (2, 5), (1, 4), (3, 7), (2, 6)])
@pytest.mark.parametrize("per_student", [None, 1])
def test_assignment_is_the_optimum(c_s: int, c_t: int, per_student: int | None) -> None:
    cost = torch.rand(c_s, c_t, generator=generator(c_s * 10 + c_t), dtype=torch.float64)
    group = per_student or c_t // c_s
    best = min(
        sum(cost[slot % c_s, t].item() for slot, t in enumerate(chosen))
        for chosen in itertools.permutations(range(c_t), group * c_s)
    )
    assignment = assign(cost, per_student)
    assert assignment.shape == (c_s, group)
    assert assignment.unique().numel() == assignment.numel()
    assert total_cost(cost, assignment) == pytest.approx(best, rel=1e-12)


def test_all_teacher_channels_compete_when_they_do_not_divide() -> None:
    cost = torch.ones(2, 5)
    cost[0, 4] = cost[1, 3] = 0.0  # the last ones are the best, though 2 * 2 slots leave one out
    assignment = assign(cost)
    assert 4 in assignment[0]
    assert 3 in assignment[1]


def test_assignment_errors() -> None:
    with pytest.raises(ValueError, match=r"5 channels.*only 4"):
        assign(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="per_student is 3"):
        assign(torch.zeros(2, 4), per_student=3)
    with pytest.raises(ValueError, match="not finite"):
        assign(torch.full((2, 4), float("nan")))


def test_the_stages_of_resnet50_to_resnet18_are_matched_one_to_one() -> None:
    for width, size in ((64, 16), (128, 8), (256, 4), (512, 2)):
        cost = matching_cost(randn(8, width, size, size), randn(8, 4 * width, size, size, seed=1))
        assignment = assign(cost)
        assert assignment.shape == (width, 4)
        assert assignment.unique().numel() == 4 * width
        rows = cost.repeat_interleave(4, dim=0).double().numpy()  # another layout of the same problem
        assert total_cost(cost, assignment) == pytest.approx(rows[linear_sum_assignment(rows)].sum(), rel=1e-9)


def test_statistics_average_over_images_of_all_batches() -> None:
    statistics = MatchingStatistics([2], [4], measure_margins=True)
    s, t = randn(5, 2, 3, 3), randn(5, 4, 3, 3, seed=1)
    statistics.update([s[:2]], [t[:2]])
    statistics.update([s[2:]], [t[2:]])
    torch.testing.assert_close(statistics.mean_costs()[0], naive_cost(s, t) / 5, rtol=1e-6, atol=1e-6)
    assert statistics.margins[0].margin()[0].item() == pytest.approx(t[:, 0][t[:, 0] < 0].mean().item())

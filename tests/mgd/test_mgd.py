"""Margin, matching, reducers, loss and MGD against naive loops, closed forms and brute force."""

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm
from torch import Tensor

from mgd_ssl.mgd.loss import partial_l2
from mgd_ssl.mgd.margin import MeasuredMargin, relu_margin
from mgd_ssl.mgd.matching import MatchingStatistics, assign, matching_cost, total_cost
from mgd_ssl.mgd.mgd import INITIAL_MARGIN, MGD
from mgd_ssl.mgd.reducers import REDUCERS, random_drop


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


# margin


@pytest.mark.parametrize(("gamma", "beta"), [(1.0, 0.0), (-1.0, 0.0), (0.3, -0.9), (2.0, 1.0), (0.5, 1.2), (0.7, -6.0)])
def test_margin_is_the_mean_of_the_negative_part(gamma: float, beta: float) -> None:
    density = norm(beta, abs(gamma)).pdf
    low = beta - 12 * abs(gamma)
    expectation = quad(lambda x: x * density(x), low, 0)[0] / quad(density, low, 0)[0]
    ours = relu_margin(torch.tensor([gamma], dtype=torch.float64), torch.tensor([beta], dtype=torch.float64))
    assert ours.item() == pytest.approx(expectation, rel=1e-7)


def test_margin_of_a_channel_that_is_rarely_negative_is_three_deviations() -> None:
    assert relu_margin(torch.tensor([0.5]), torch.tensor([2.0])).item() == pytest.approx(-1.5)


@pytest.mark.parametrize(("beta", "margin"), [(-2.0, -2.0), (0.0, 0.0), (3.0, 0.0)])
def test_margin_of_a_constant_channel(beta: float, margin: float) -> None:
    assert relu_margin(torch.zeros(1), torch.tensor([beta])).item() == margin


def test_margin_at_initialisation_is_the_published_constant() -> None:
    assert relu_margin(torch.ones(1, dtype=torch.float64), torch.zeros(1)).item() == pytest.approx(INITIAL_MARGIN)
    assert pytest.approx(-math.sqrt(2 / math.pi)) == INITIAL_MARGIN


def test_margin_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        relu_margin(torch.tensor([float("nan")]), torch.zeros(1))
    with pytest.raises(ValueError, match="one length"):
        relu_margin(torch.ones(2), torch.zeros(3))


def test_measured_margin_is_the_mean_of_the_values_below_zero() -> None:
    maps = [randn(3, 4, 5, 5, seed=i) for i in range(2)]
    maps[0][:, 3] = maps[1][:, 3] = 1.0  # never negative
    measured = MeasuredMargin(4)
    for m in maps:
        measured.update(m)
    for c in range(3):
        values = np.concatenate([m[:, c].numpy().ravel() for m in maps])
        assert measured.margin()[c].item() == pytest.approx(values[values < 0].mean(), rel=1e-6)
    assert measured.margin()[3].item() == 0


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


# reducers

NAIVE: dict[str, tuple[Callable[[list[float]], float], Callable[[list[float]], float]]] = {
    "amp": (lambda group: max(group, key=abs), lambda margins: sum(margins) / len(margins)),
    "max": (max, max),
    "mean": (lambda group: sum(group) / len(group), lambda margins: sum(margins) / len(margins)),
    "sparse": (lambda group: group[0], lambda margins: margins[0]),
}


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("c_t", [8, 7])
def test_reducer_against_a_loop(name: str, c_t: int) -> None:
    t, margin = randn(2, c_t, 3, 4), -torch.rand(c_t, generator=generator())
    assignment = assign(torch.rand(3, c_t, generator=generator(5)))  # [3, 2]
    target, reduced = REDUCERS[name](t, margin, assignment)
    assert target.shape == (2, 3, 3, 4)
    of_values, of_margins = NAIVE[name]
    for n, s, h, w in itertools.product(range(2), range(3), range(3), range(4)):
        group = [t[n, c, h, w].item() for c in assignment[s]]
        assert target[n, s, h, w].item() == pytest.approx(of_values(group), rel=1e-6)
    for s in range(3):
        assert reduced[s].item() == pytest.approx(of_margins([margin[c].item() for c in assignment[s]]), rel=1e-6)


@pytest.mark.parametrize("name", NAIVE)
def test_reducer_is_the_same_for_both_memory_formats(name: str) -> None:
    t, margin, assignment = randn(2, 8, 3, 4), -torch.rand(8), assign(torch.rand(4, 8, generator=generator(5)))
    for one, other in zip(
        REDUCERS[name](t, margin, assignment),
        REDUCERS[name](t.to(memory_format=torch.channels_last), margin, assignment),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_absolute_max_pooling_of_a_tie_takes_the_positive_value() -> None:
    t = torch.tensor([2.0, -2.0]).view(1, 2, 1, 1)
    assert REDUCERS["amp"](t, torch.zeros(2), torch.tensor([[1, 0]]))[0].item() == 2


def test_random_drop_takes_each_channel_of_a_group_as_often_and_its_own_margin() -> None:
    t = torch.arange(4.0).view(1, 4, 1, 1)
    assignment = torch.tensor([[2, 0], [1, 3]])
    draws = generator(3)
    seen = []
    for _ in range(2000):
        target, margin = random_drop(t, -torch.arange(4.0), assignment, draws)
        assert torch.equal(margin, -target.flatten())
        seen.append(target.flatten())
    counts = torch.stack(seen).flatten().long().bincount(minlength=4)
    assert (counts - 1000).abs().max() < 4 * math.sqrt(500)
    assert set(torch.stack(seen)[:, 0].tolist()) == {0.0, 2.0}


# loss


def test_partial_l2_against_a_loop() -> None:
    s, t, margin = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1), torch.tensor([-0.5, 0.0, -2.0])
    s.requires_grad_()
    expected, gradient = 0.0, torch.zeros_like(s)
    for n, c, h, w in itertools.product(range(2), range(3), range(4), range(4)):
        student, target = s[n, c, h, w].item(), max(t[n, c, h, w].item(), margin[c].item())
        if student > target or target > 0:
            expected += (student - target) ** 2
            gradient[n, c, h, w] = 2 * (student - target)
    loss = partial_l2(s, t, margin)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(s.grad, gradient)


def test_partial_l2_gradient_by_finite_differences() -> None:
    s, t = randn(2, 3, 4, 4).double().requires_grad_(), randn(2, 3, 4, 4, seed=1).double()
    assert torch.autograd.gradcheck(partial_l2, (s, t, torch.tensor([-0.5, 0.0, -2.0]).double()))


def test_partial_l2_is_zero_where_both_are_negative_enough() -> None:
    s, t = torch.full((1, 1, 2, 2), -3.0), torch.full((1, 1, 2, 2), -1.0)
    assert partial_l2(s, t, torch.tensor([-2.0])).item() == 0


# MGD


def matched_mgd(**options: object) -> MGD:
    mgd = MGD([2, 3], [4, 9], **options)  # type: ignore[arg-type]
    mgd.rematch([torch.rand(2, 4, generator=generator(1)), torch.rand(3, 9, generator=generator(2))])
    return mgd


def test_loss_is_the_weighted_sum_of_stages_over_the_batch() -> None:
    mgd = matched_mgd(stage_weights=[0.3, 2.0])
    students = [randn(4, 2, 5, 5), randn(4, 3, 3, 3, seed=1)]
    teachers = [randn(4, 4, 5, 5, seed=2), randn(4, 9, 3, 3, seed=3)]
    expected = 0.0
    for weight, s, t, assignment in zip([0.3, 2.0], students, teachers, mgd.assignments, strict=True):
        mean, variance = s.mean(dim=(0, 2, 3), keepdim=True), s.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
        target, margin = REDUCERS["amp"](t, torch.full((t.shape[1],), INITIAL_MARGIN), assignment)
        expected += weight * partial_l2((s - mean) / (variance + 1e-5).sqrt(), target, margin).item() / 4
    assert mgd(students, teachers).item() == pytest.approx(expected, rel=1e-5)


def test_stage_weights_halve_from_the_last_stage_back() -> None:
    assert MGD([2] * 4, [2] * 4).stage_weights == [0.125, 0.25, 0.5, 1.0]
    assert MGD([2] * 3, [2] * 3).stage_weights == [0.25, 0.5, 1.0]


def test_no_loss_before_the_first_matching() -> None:
    with pytest.raises(RuntimeError, match="rematch"):
        MGD([2], [4])([randn(1, 2, 3, 3)], [randn(1, 4, 3, 3)])


def test_matching_and_margins_are_part_of_the_state() -> None:
    mgd = matched_mgd(margins=[-torch.rand(4), -torch.rand(9)])
    copy = MGD([2, 3], [4, 9])
    copy.load_state_dict(mgd.state_dict())
    assert copy.matched
    maps = [randn(2, 2, 3, 3), randn(2, 3, 3, 3)], [randn(2, 4, 3, 3), randn(2, 9, 3, 3)]
    assert torch.equal(copy(*maps), mgd(*maps))
    copy.load_state_dict(MGD([2, 3], [4, 9]).state_dict())
    assert not copy.matched


def test_rematch_tells_costs_and_what_changed() -> None:
    mgd = MGD([2], [4])
    first = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    (change,) = mgd.rematch([first])
    assert change.cost_before is None
    assert (change.cost_after, change.changed) == (0.0, 1.0)
    second = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]])  # channels 1 and 2 change places
    (change,) = mgd.rematch([second])
    assert (change.cost_before, change.cost_after, change.changed) == (0.5, 0.0, 0.5)


def test_sparse_matching_pairs_each_student_channel_with_its_best_partner() -> None:
    mgd = MGD([2], [6], reducer="sparse")
    mgd.rematch([torch.tensor([[9.0, 9, 1, 9, 9, 2], [9, 9, 2, 9, 9, 4]])])  # 1 + 4 is more than 2 + 2
    assert mgd.assignments[0].tolist() == [[5], [2]]


def test_construction_errors() -> None:
    with pytest.raises(ValueError, match=r"8 student channels.*4 teacher"):
        MGD([8], [4])
    with pytest.raises(ValueError, match="'amax'"):
        MGD([2], [4], reducer="amax")
    with pytest.raises(ValueError, match="for every stage"):
        MGD([2, 2], [4])


def test_statistics_average_over_images_of_all_batches() -> None:
    statistics = MatchingStatistics([2], [4], measure_margins=True)
    s, t = randn(5, 2, 3, 3), randn(5, 4, 3, 3, seed=1)
    statistics.update([s[:2]], [t[:2]])
    statistics.update([s[2:]], [t[2:]])
    torch.testing.assert_close(statistics.mean_costs()[0], naive_cost(s, t) / 5, rtol=1e-6, atol=1e-6)
    assert statistics.margins[0].margin()[0].item() == pytest.approx(t[:, 0][t[:, 0] < 0].mean().item())


def test_loss_is_computed_in_float32_under_autocast() -> None:
    mgd = matched_mgd()
    students = [randn(2, 2, 40, 40) * 100, randn(2, 3, 20, 20) * 100]
    teachers = [randn(2, 4, 40, 40, seed=2) * 100, randn(2, 9, 20, 20, seed=3) * 100]
    exact = mgd(students, teachers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(mgd(students, teachers), exact)


@pytest.mark.parametrize("reducer", ["amp", "max", "mean", "sparse"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_compiled_loss_is_the_eager_one(reducer: str, layout: torch.memory_format) -> None:
    torch._dynamo.reset()  # of what other tests have compiled
    torch.manual_seed(0)
    eager = MGD([6, 10], [24, 33], [-torch.rand(24), -torch.rand(33)], reducer=reducer)
    eager.rematch([torch.rand(6, 24), torch.rand(10, 33)])
    compiled = copy.deepcopy(eager)
    compiled.compile(fullgraph=True)  # by inductor
    found = []
    for mgd in (eager, compiled):
        torch.manual_seed(1)
        maps = [torch.randn(3, c, 5, 5).to(memory_format=layout) for c in (24, 33)]
        student_maps = [torch.randn(3, c, 5, 5).to(memory_format=layout).requires_grad_() for c in (6, 10)]
        loss = mgd(student_maps, maps)
        loss.backward()
        found.append([loss.detach(), *(m.grad for m in student_maps), *(p.grad for p in mgd.parameters())])
        found[-1] += [norm.running_var for norm in mgd.norms]
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)

"""The loss and MGD against naive loops and finite differences."""

import copy
import itertools

import pytest
import torch

from mgd_ssl.mgd.loss import partial_l2
from mgd_ssl.mgd.mgd import INITIAL_MARGIN, MGD
from mgd_ssl.mgd.reducers import REDUCERS
from tests.mgd.drawn import generator, randn

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

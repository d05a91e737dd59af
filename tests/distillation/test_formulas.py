"""Terms against their formulas, written as loops over rows."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mgd_ssl.distillation.bingo import Bingo
from mgd_ssl.distillation.compress import CompRess
from mgd_ssl.distillation.disco import DisCo
from mgd_ssl.distillation.queue import Queue
from mgd_ssl.distillation.seed import Seed
from mgd_ssl.distillation.simreg import SimReg
from mgd_ssl.distillation.term import Seen

# loops from the formulas, in float64


def unit(row: Tensor) -> Tensor:
    return row / math.sqrt(float((row * row).sum()))


def softmax(values: list[Tensor]) -> list[Tensor]:
    whole = torch.stack(values).exp().sum()
    return [value.exp() / whole for value in values]


def rows(seed: int, count: int, width: int) -> Tensor:
    return 3 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seed_by_loops(s: Tensor, t: Tensor, queue: Tensor) -> float:
    total = 0.0
    for student, teacher in zip(s, t, strict=True):
        anchors = [unit(teacher), *queue]
        p = softmax([unit(teacher) @ a / 0.07 for a in anchors])
        q = softmax([unit(student) @ a / 0.2 for a in anchors])
        total -= sum(float(a * b.log()) for a, b in zip(p, q, strict=True))
    return total / len(s)


def compress_by_loops(u: Tensor, g: Tensor, queue: Tensor) -> float:
    total = 0.0
    for student, teacher in zip(u, g, strict=True):
        p = softmax([unit(teacher) @ a / 0.04 for a in queue])
        q = softmax([unit(student) @ a / 0.04 for a in queue])
        total += sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True))
    return total / len(u)


def disco_by_loops(s: Tensor, t: Tensor, queue: Tensor) -> float:
    return sum(float(((unit(a) - unit(b)) ** 2).sum()) for a, b in zip(s, t, strict=True)) / len(s)


def simreg_by_loops(f: Tensor, g: Tensor, queue: Tensor) -> float:
    return sum(2 - 2 * float(unit(a) @ unit(b)) for a, b in zip(f, g, strict=True)) / len(f)


def nce_by_loops(a: Tensor, p: Tensor, queue: Tensor) -> float:
    total = 0.0
    for one, positive in zip(a, p, strict=True):
        total -= float(softmax([unit(one) @ unit(positive) / 0.2, *(unit(one) @ q / 0.2 for q in queue)])[0].log())
    return total / len(a)


Loops = Callable[[Tensor, Tensor, Tensor], float]


@pytest.mark.parametrize(
    ("name", "loops"),
    [
        ("seed", seed_by_loops),
        ("compress", compress_by_loops),
        ("disco", disco_by_loops),
        ("simreg", simreg_by_loops),
    ],
)
def test_terms_are_their_formulas(name: str, loops: Loops) -> None:
    terms: dict[str, Any] = {
        "seed": Seed(6, 12, 0.2, 0.07, seed=4),
        "compress": CompRess(nn.Identity(), 6, 12, 0.04, seed=4),
        "disco": DisCo(both_views=False),
        "simreg": SimReg(nn.Identity()),
    }
    term, student, teacher = terms[name], rows(1, 5, 6), rows(2, 5, 6)
    queue = term.queue.rows.double() if hasattr(term, "queue") else rows(3, 12, 6)
    seen = [Seen(output=x.float(), feature=x.float()) for x in (student, teacher)]
    found = term.loss(seen[0], term.prepare(seen[1], 0))
    assert found.item() == pytest.approx(loops(student, teacher, queue), rel=2e-6)


@pytest.mark.parametrize("epoch", [10.0, 11.0])
def test_bingo_is_its_formula(epoch: float) -> None:
    term = Bingo(6, 12, 0.2, seed=4)
    queue, (q, mq, x, p, p2) = term.queue.rows.double(), (rows(i, 5, 6) for i in range(5))
    taught = {"key": Seen(output=p.float()), "member_key": Seen(output=p2.float())}
    target = term.prepare(Seen(views=taught, epoch=epoch, share=0.3), 0)
    student = Seen(output=q.float(), views={"member": Seen(output=mq.float()), "mixed": Seen(output=x.float())})
    own, other = (1, 0) if epoch < 11 else (0.5, 0.5)
    expected = (
        own * nce_by_loops(q, p, queue) + other * nce_by_loops(q, p2, queue)
        + own * nce_by_loops(mq, p2, queue) + other * nce_by_loops(mq, p, queue)
        + 0.3 * nce_by_loops(x, p, queue) + 0.7 * nce_by_loops(x, p2, queue)
    ) / 3  # fmt: skip
    assert term.loss(student, target).item() == pytest.approx(expected, rel=2e-6)


def test_losses_are_taken_in_float32_whatever_the_precision() -> None:
    student, teacher = rows(1, 8, 16).bfloat16(), rows(2, 8, 16).bfloat16()
    exact = [Seen(output=x.float(), feature=x.float()) for x in (student, teacher)]
    half = [Seen(output=x, feature=x) for x in (student, teacher)]
    terms: list[Any] = [
        Seed(16, 32), CompRess(nn.Identity(), 16, 32), DisCo(both_views=False), SimReg(nn.Identity()),
    ]  # fmt: skip
    for term in terms:
        expected = term.loss(exact[0], term.prepare(exact[1], 0))
        with torch.autocast("cpu", torch.bfloat16):
            found = term.loss(half[0], term.prepare(half[1], 0))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_a_queue_keeps_the_newest_rows_in_turn() -> None:
    queue = Queue(2, 5)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(5))
    for number in range(4):
        queue.put(torch.full((2, 2), float(number)))
    assert queue.rows[:, 0].tolist() == [2.0, 3.0, 3.0, 1.0, 2.0] and int(queue.ptr) == 3
    with pytest.raises(ValueError, match="a queue of 5 rows is given 6 at once"):
        queue.put(torch.zeros(6, 2))

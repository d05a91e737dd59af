"""The terms replay recordings of the published code of SEED, DisCo, BINGO, SimReg and CompRess, and equal loops
written from their formulas.

MGD_TERM_REFERENCE is the folder of the recordings; those that came with this source by default.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mgd_ssl.distillation.bingo import Bingo
from mgd_ssl.distillation.compress import CompRess
from mgd_ssl.distillation.disco import DisCo
from mgd_ssl.distillation.mixing import box_around
from mgd_ssl.distillation.queue import Queue
from mgd_ssl.distillation.seed import Seed
from mgd_ssl.distillation.simreg import SimReg, regression_head
from mgd_ssl.distillation.term import Seen

FOLDER = Path(os.environ.get("MGD_TERM_REFERENCE", Path(__file__).parent / "reference" / "terms"))


STEPS = range(3)


def recordings(pattern: str) -> list[Any]:
    """Files of a kind, at least one of which has to be there."""
    found = sorted(FOLDER.glob(pattern))
    assert found, f"no {pattern} in {FOLDER}"
    return [pytest.param(path, id=path.stem) for path in found]


class Recording:
    """The arrays of a file as tensors."""

    def __init__(self, path: Path) -> None:
        self.arrays = dict(np.load(path))

    def __call__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))

    def number(self, name: str) -> float:
        return float(self.arrays[name])

    def leaf(self, name: str) -> Tensor:
        return self(name).requires_grad_()


def close_loss(found: Tensor, recorded: float) -> None:
    torch.testing.assert_close(found.item(), recorded, rtol=1e-5, atol=0)


def close_gradient(found: Tensor | None, recorded: Tensor, size: float | None = None) -> None:
    """To 1e-4 of the largest entry (or of a size that is given)."""
    assert found is not None
    size = float(recorded.abs().max()) if size is None else size
    torch.testing.assert_close(found, recorded, rtol=0, atol=1e-4 * size)


def fill(queue: Queue, rows: Tensor) -> None:
    queue.rows.copy_(rows)


def after(queue: Queue, rows: Tensor, ptr: int) -> None:
    torch.testing.assert_close(queue.rows, rows, rtol=0, atol=1e-6)
    assert int(queue.ptr) == ptr


# the recordings


@pytest.mark.parametrize("path", recordings("seed_d*_k*.npz"))
def test_seed(path: Path) -> None:
    file = Recording(path)
    dim, size = file("queue0").shape
    for number, temperature in enumerate(file("temperatures_teacher").tolist()):
        term = Seed(dim, size, file.number("temperature_student"), temperature)
        fill(term.queue, file("queue0").T)
        for step in STEPS:
            student = file.leaf(f"step{step}_student")
            target = term.prepare(Seen(output=file(f"step{step}_teacher")), step)
            loss = term.loss(Seen(output=student), target)
            loss.backward()
            close_loss(loss, file.number(f"temp{number}_step{step}_loss"))
            close_gradient(student.grad, file(f"temp{number}_step{step}_grad_student"))
            if number == 1:
                close_gradient(student.grad, seed_gradient(term, file, step))
            term.after_step()
            after(term.queue, file(f"step{step}_queue_after").T, int(file(f"step{step}_queue_ptr_after")))


def seed_gradient(term: Seed, file: Recording, step: int) -> Tensor:
    """With respect to the student, from the teacher's distribution as it was recorded."""
    student, teacher = (file(f"step{step}_{name}").double() for name in ("student", "teacher"))
    s, t = student.requires_grad_(), nn.functional.normalize(teacher, dim=1)
    n = nn.functional.normalize(s, dim=1)
    logits = torch.cat([(n * t).sum(dim=1, keepdim=True), n @ term.queue.rows.double().T], dim=1)
    targets = file(f"temp1_step{step}_targets").double()
    nn.functional.cross_entropy(logits / term.student_temperature, targets).backward()
    assert s.grad is not None
    return s.grad.float()


@pytest.mark.parametrize("path", recordings("disco_d*_k*.npz"))
def test_disco(path: Path) -> None:
    file = Recording(path)
    for step in STEPS:
        query, key = (file.leaf(f"step{step}_student_{view}") for view in "qk")
        taught = Seen(output=file(f"step{step}_teacher_q"), views={"key": Seen(output=file(f"step{step}_teacher_k"))})
        images = len(query)  # the recorded losses are sums over them
        alone, both = DisCo(both_views=False), DisCo()
        loss = alone.loss(Seen(output=query), alone.prepare(taught, step))
        close_loss(images * loss, file.number(f"step{step}_loss_mse_q"))
        total = both.loss(Seen(output=query, views={"key": Seen(output=key)}), both.prepare(taught, step))
        (images * total).backward()
        sides = [file.number(f"step{step}_loss_mse_{view}") for view in "qk"]
        close_loss(images * total, sum(sides))
        close_gradient(query.grad, file(f"step{step}_grad_q_mse_q"))
        close_gradient(key.grad, file(f"step{step}_grad_k_mse_k"))


@pytest.mark.parametrize("phase", ["warm", "full"])
@pytest.mark.parametrize("path", recordings("bingo_d*_k*.npz"))
def test_bingo(path: Path, phase: str) -> None:
    file = Recording(path)
    dim, size = file("queue0").shape
    term = Bingo(dim, size, file.number("temperature"))
    fill(term.queue, file("queue0").T)
    for step in STEPS:
        leaves = {name: file.leaf(f"step{step}_student_{name}") for name in ("query", "member", "mixed")}
        taught = {"key": "key", "member_key": "member"}
        target = term.prepare(
            Seen(
                views={view: Seen(output=file(f"step{step}_teacher_{name}")) for view, name in taught.items()},
                epoch=10.99 if phase == "warm" else 11.0,
                share=file.number(f"step{step}_mix_share"),
            ),
            step,
        )
        views = {name: Seen(output=leaves[name]) for name in ("member", "mixed")}
        loss = term.loss(Seen(output=leaves["query"], views=views), target)
        loss.backward()
        close_loss(loss, file.number(f"step{step}_{phase}_loss"))
        for name, leaf in leaves.items():
            close_gradient(leaf.grad, file(f"step{step}_{phase}_grad_{name}"))
        term.after_step()
        after(term.queue, file(f"step{step}_queue_after").T, int(file(f"step{step}_queue_ptr_after")))


@pytest.mark.parametrize("path", recordings("simreg_layers*.npz"))
def test_simreg(path: Path) -> None:
    file = Recording(path)
    layers, width, teacher_width = (int(part.lstrip("layersdt")) for part in path.stem.split("_")[1:])
    term = SimReg(regression_head(width, teacher_width, layers))
    term.head.load_state_dict({name[6:]: file(name) for name in file.arrays if name.startswith("head0.")})
    settings: dict[str, Any] = {name: file.number(name) for name in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(term.head.parameters(), **settings)
    for step in STEPS:
        features = file.leaf(f"step{step}_features")
        loss = term.loss(Seen(feature=features), term.prepare(Seen(feature=file(f"step{step}_teacher")), step))
        optimizer.zero_grad()
        loss.backward()
        close_loss(loss, file.number(f"step{step}_loss"))
        close_gradient(features.grad, file(f"step{step}_grad_features"))
        means = torch.tensor([float(p.grad.abs().mean()) for p in term.head.parameters() if p.grad is not None])
        torch.testing.assert_close(means, file(f"step{step}_grad_abs_mean").float(), rtol=1e-4, atol=1e-7)
        optimizer.step()
        state = [value for name, value in term.head.state_dict().items() if not name.endswith("tracked")]
        left = torch.stack([value.abs().mean() for value in state])
        torch.testing.assert_close(left, file(f"step{step}_head_abs_mean").float(), rtol=1e-5, atol=1e-7)
    for name, value in term.head.state_dict().items():
        torch.testing.assert_close(value, file(f"head3.{name}"), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        found = term.eval().head(file(f"step{STEPS[-1]}_features"))
    torch.testing.assert_close(found, file("eval_output"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", recordings("compress_s*_t*_k*.npz"))
def test_compress(path: Path) -> None:
    file = Recording(path)
    size, width = file("one_queue_teacher0").shape
    term = CompRess(nn.Identity(), width, size, file.number("temperature"))
    fill(term.queue, file("one_queue_teacher0"))
    for step in STEPS:
        student = file.leaf(f"step{step}_student_in_teacher_space")
        target = term.prepare(Seen(feature=file(f"step{step}_teacher")), step)
        loss = term.loss(Seen(feature=student), target)
        loss.backward()
        close_loss(loss, file.number(f"step{step}_one_loss"))
        close_gradient(student.grad, file(f"step{step}_one_grad_student"))
        term.after_step()
        after(term.queue, file(f"step{step}_one_queue_teacher_after"), int(file(f"step{step}_index_after")))


@pytest.mark.parametrize("path", recordings("bingo_bags.npz"))
def test_boxes_of_mixed_images(path: Path) -> None:
    for height, width, share, row, column, *changed, kept in Recording(path)("cutmix").tolist():
        box = box_around(int(row), int(column), int(height), int(width), share)
        assert box.kept(int(height), int(width)) == pytest.approx(kept, abs=1e-12)
        assert list(box) == changed or (not any(changed) and kept == 1)

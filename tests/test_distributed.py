"""Several processes are one: same matching, same queue, same weights; and they stop together."""

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mgd_ssl import MGD, GuidedMoCo, Interrupted, MatchingStatistics, MoCo, UserError, pretrain
from mgd_ssl.config import RuntimeConfig
from mgd_ssl.distillation.bingo import Bingo
from mgd_ssl.distillation.compress import CompRess
from mgd_ssl.distillation.disco import DisCo
from mgd_ssl.distillation.guide import Guide
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.distillation.seed import Seed
from mgd_ssl.distillation.simreg import SimReg
from mgd_ssl.distillation.term import Seen
from mgd_ssl.distillation.weighting import Weight
from mgd_ssl.errors import RankZeroError
from mgd_ssl.networks.backbones import build_encoder
from mgd_ssl.run.checkpoint import Checkpoints
from mgd_ssl.run.runtime import on_rank_zero
from mgd_ssl.run.runtime import process as this_process
from mgd_ssl.run.stop import StopRequest
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update
from moco.dist import gather_batch, rank, world_size
from moco.shuffle import permutation, shuffle_batch, unshuffle_batch
from moco.split_norm import split_batch_norms
from tests.runs import (
    DEADLINE,
    Stepper,
    assert_same_end,
    checkpoint,
    differing,
    flags,
    free_port,
    processes,
    rows,
    steps_saved,
    stop_after,
    tiny,
    trained_teacher,
    wait_for,
)

TAPS = ["stages.0.1", "stages.1.1"]


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    return trained_teacher(tmp_path_factory.getbasetemp(), image_folder)


# processes of one group


def member(work: Callable[..., Any], out: Path, number: int, count: int, port: int, args: tuple[Any, ...]) -> None:
    """One rank: writes what `work` returns, or its traceback, to a file."""
    os.environ.update(
        RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    try:
        torch.save(work(*args), out / f"{number}.pt")
    except BaseException:
        (out / f"{number}.error").write_text(traceback.format_exc())
        raise


def on_ranks(count: int, out: Path, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(*args)` returns on each of `count` ranks; they start their process group themselves."""
    out.mkdir()
    port = free_port()
    ranks = [processes.Process(target=member, args=(work, out, n, count, port, args)) for n in range(count)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(DEADLINE)
        if one.exitcode is None:
            for other in ranks:
                other.kill()
            pytest.fail("a rank hangs")
    errors = "\n".join(path.read_text() for path in sorted(out.glob("*.error")))
    assert not errors, errors
    return [torch.load(out / f"{n}.pt", weights_only=False) for n in range(count)]


class Plain(nn.Module):
    """Two stages of convolution and ReLU, without BatchNorm: nothing in it depends on who else is in the batch."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        stages = [
            nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(inplace=True)),
        ]
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(2 * width, dim)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.fc(self.stages(images).mean(dim=(2, 3)))
        return out


def plain_method() -> GuidedMoCo:
    torch.manual_seed(0)
    moco = MoCo(Plain(4, 6), dim=6, queue_size=24, momentum=0.9)
    mgd = MGD([4, 8], [8, 16])
    mgd.norms = nn.ModuleList(nn.Identity() for _ in mgd.norms)
    costs = [torch.rand(4, 8), torch.rand(8, 16)]
    mgd.rematch(costs)
    return GuidedMoCo(moco, Guide(moco.encoder_q, TAPS, {"mgd": MatchedMaps(mgd)}, {"mgd": 1e-2}))


def global_batch(step: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(step)
    im_q, im_k = torch.randn(2, 8, 3, 16, 16, generator=generator)
    maps = [torch.randn(8, c, s, s, generator=generator) for c, s in ((8, 8), (16, 4))]
    return im_q, im_k, maps


def part(batch: Tensor) -> Tensor:
    """This rank's part of a global batch."""
    return batch.chunk(world_size())[rank()]


def train_plain() -> dict[str, Any]:
    """Five steps on the same global batches whatever the number of ranks."""
    method = plain_method()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1, 0.9)
    model = method if world_size() == 1 else DistributedDataParallel(method, broadcast_buffers=False)
    losses = []
    for step in range(5):
        im_q, im_k, maps = global_batch(step)
        targets = method.guide.prepare(Seen([part(m) for m in maps]), step)
        output = model(part(im_q), part(im_k), targets, step)
        output.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.moco.enqueue(output.carried)
        losses.append(torch.stack([output.total.detach(), output.losses["mgd"].detach()]))
    return {"state": method.state_dict(), "losses": torch.stack(losses)}


def terms_method() -> GuidedMoCo:
    """Every term, one of which rests at times."""
    torch.manual_seed(0)
    moco = MoCo(Plain(4, 6), dim=6, queue_size=24, momentum=0.9)
    terms = {
        "seed": Seed(6, 24, teacher_temperature=0.1), "disco": DisCo(), "simreg": SimReg(nn.Linear(8, 10)),
        "compress": CompRess(nn.Linear(8, 10), 10, 16), "bingo": Bingo(6, 24, warm_epochs=1),
    }  # fmt: skip
    weights = {
        "seed": Weight(1.0, balance=0.5), "disco": Weight(1.0, until=1.5), "simreg": Weight(1.0, since=1.0),
        "compress": Weight(1.0, "linear", until=3.0), "bingo": Weight(0.5),
    }  # fmt: skip
    return GuidedMoCo(moco, Guide(moco.encoder_q, (), terms, weights, head="fc"))


def train_by_terms() -> dict[str, Any]:
    """Five steps, two an epoch; every second one measures gradients and how evenly embeddings spread."""
    method = terms_method()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.05, 0.9)
    model = method if world_size() == 1 else DistributedDataParallel(method, broadcast_buffers=False)
    losses, measured = [], []
    for step in range(5):
        im_q, im_k, _ = global_batch(step)
        generator = torch.Generator().manual_seed(100 + step)
        taught = [[part(torch.randn(8, d, generator=generator)) for d in (6, 10)] for _ in range(3)]
        query, key, member = (Seen(output=output, feature=feature) for output, feature in taught)
        query.views, query.epoch, query.share = {"key": key, "member_key": member}, step / 2, 0.3
        targets = method.guide.prepare(query, step)
        others = {name: part(im_k + i) for i, name in enumerate(sorted(method.guide.needs(step / 2).student))}
        method.measuring = step % 2 == 0
        output = model(part(im_q), part(im_k), targets, step, others)
        output.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.moco.enqueue(output.carried)
        method.guide.after_step()
        losses.append(torch.stack([value.detach() for value in output.losses.values()]))
        if method.measuring:
            measured.append(dict(method.measured))
    return {"state": method.state_dict(), "losses": torch.stack(losses), "measured": measured}


def train_with_norms() -> dict[str, Any]:
    """Three steps of networks with BatchNorm: two ranks with a part each, or one process with a batch in two parts."""
    splits = 2 // world_size()
    torch.manual_seed(0)
    encoder = build_encoder("thin_resnet10", 8).to(memory_format=torch.channels_last)
    mgd = MGD([16, 32, 64, 128], [32, 32, 64, 256])
    mgd.rematch([torch.rand(s, t) for s, t in zip(mgd.student_channels, mgd.teacher_channels, strict=True)])
    moco = MoCo(encoder, 8, 24, momentum=0.9, bn_splits=splits)
    split_batch_norms(mgd.norms, splits)
    guide = Guide(encoder, [f"layer{i}.0.relu" for i in range(1, 5)], {"mgd": MatchedMaps(mgd)}, {"mgd": 1e-2})
    method = GuidedMoCo(moco, guide)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.05, 0.9)
    model = method if world_size() == 1 else DistributedDataParallel(method, broadcast_buffers=False)
    losses = []
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        im_q, im_k = torch.randn(2, 12, 3, 32, 32, generator=generator)
        im_q[:6] += 1  # the ranks' statistics differ
        shapes = zip(mgd.teacher_channels, (16, 8, 4, 2), strict=True)
        maps = [torch.randn(12, c, s, s, generator=generator) for c, s in shapes]
        output = model(part(im_q), part(im_k), guide.prepare(Seen([part(m) for m in maps]), step), step)
        output.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        moco.enqueue(output.carried)
        losses.append(torch.stack([output.losses["contrastive"].detach(), output.losses["mgd"].detach()]))
    return {"state": method.state_dict(), "losses": torch.stack(losses)}


def match(images: Path, teacher_file: Path, folder: Path) -> dict[str, Any]:
    """A matching update with measured margins."""
    with this_process(RuntimeConfig(device="cpu", threads=1)):
        out = folder / f"match_{world_size()}_{rank()}"
        measured = {"matching_images": 15, "margin": "measured"}
        stepper = Stepper(tiny(images, out, teacher=teacher_file, mgd=measured, optim={"batch_size": 8}))
        # statistics differ between ranks, as they do in training: those of rank 0 count
        stepper.module.get_submodule("moco.encoder_q.bn1").get_buffer("running_mean").add_(rank())
        with stepper.session:
            row = stepper.task.rematch()
        mgd = stepper.task.mgd
        assert mgd is not None
        return {
            "costs": [row[f"stage{i}_cost_after"] for i in range(1, 5)],
            "assignments": mgd.assignments,
            "margins": mgd.margins,
        }


def check_collectives() -> dict[str, Any]:
    me, count = rank(), world_size()
    local = torch.arange(6.0).view(3, 2) + 100 * me
    order = permutation(3 * count, seed=5)
    shuffled = shuffle_batch(local, order)
    stop, agreed = StopRequest(), []
    for step in range(8):
        if me == 1 and step == 3:
            stop.signal_number = signal.SIGTERM
        agreed.append(stop.agreed())
        if agreed[-1]:
            break
    stop.finish()

    def fail() -> None:
        raise UserError("only rank 0 has looked")

    with pytest.raises(UserError, match="only rank 0 has looked"):
        on_rank_zero(fail)
    return {
        "gathered": gather_batch(local),
        "shuffled": shuffled,
        "unshuffled": torch.equal(unshuffle_batch(shuffled, order), local),
        "images": shuffled_images(),
        "agreed": agreed,
        "shared": on_rank_zero(lambda: f"from rank {rank()}"),
    }


def shuffled_images() -> bool:
    """Whether shuffled images, in both memory formats, are the rows a gathered batch would give, laid out alike."""
    me, count = rank(), world_size()
    local = torch.randn(5, 3, 4, 2, generator=torch.Generator().manual_seed(me))
    gathered = gather_batch(local)
    right = True
    for seed in range(4):
        order = permutation(5 * count, seed)
        for layout in (torch.contiguous_format, torch.channels_last):
            found = shuffle_batch(local.contiguous(memory_format=layout), order)
            right &= torch.equal(found, gathered[order[5 * me : 5 * (me + 1)]])
            right &= found.is_contiguous(memory_format=layout)
    return right


def all_checks(images: Path, teacher_file: Path, folder: Path) -> dict[str, Any]:
    found = {"match": match(images, teacher_file, folder)}  # with a group of its own
    if int(os.environ["WORLD_SIZE"]) > 1:
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
        dist.init_process_group("gloo")
    found["train"] = train_plain()
    found["terms"] = train_by_terms()
    found["norms"] = train_with_norms()
    if world_size() > 1:
        found["collectives"] = check_collectives()
        dist.destroy_process_group()
    return found


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


def join_and_exchange() -> bool:
    dist.init_process_group("gloo")
    right = shuffled_images()
    dist.destroy_process_group()
    return right


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


# whole runs of two processes


def run_and_stop(settings: dict[str, Any], stop_on: int, step: int) -> str:
    """Pretrain until one rank receives a signal; the message of the interruption."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if int(os.environ["RANK"]) == stop_on:
            stop_after(monkeypatch, step)
        with pytest.raises(Interrupted) as stopped:
            pretrain(**settings)
    return str(stopped.value)


def watched_steps(settings: dict[str, Any]) -> dict[str, Any]:
    """Pretrain; this rank's losses, and running means of a BatchNorm: before a step, of its batch, after it."""
    losses: list[list[float]] = []
    means: list[list[Tensor]] = []
    update = Update.__call__

    def watched(self: Update, inputs: Any, finished: int) -> StepOutput:
        norm = self.module.get_submodule("moco.encoder_q.bn1")
        running = norm.get_buffer("running_mean")
        means.append([running.clone()])
        hook = norm.register_forward_pre_hook(lambda module, inputs: means[-1].append(inputs[0].mean(dim=(0, 2, 3))))
        step = update(self, inputs, finished)
        hook.remove()
        means[-1].append(running.clone())
        told = (step.total, step.losses["contrastive"], step.losses["mgd"], step.shown["accuracy"])
        losses.append([value.item() for value in told])
        return step

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Update, "__call__", watched)
        pretrain(**settings)
    return {"losses": losses, "means": means}


def several_runs(images: Path, folder: Path, teacher: Path) -> dict[str, Any]:
    """Runs one after the other in one pair of processes, each with a process group of its own."""

    def next_port() -> None:
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)

    knn = {"train": images / "train", "val": images / "val", "every_epochs": 1, "k": 3}
    common = {"teacher": teacher, "knn": knn}
    seen = watched_steps(tiny(images, folder / "whole", **common))
    next_port()
    told = run_and_stop(tiny(images, folder / "stopped", **common), stop_on=1, step=4)
    next_port()
    missing = tiny(images, folder / "missing")
    missing["data"]["train"] = folder / "nowhere"
    try:
        pretrain(**missing)
    except UserError as error:
        return {"told": told, "missing": str(error), **seen}
    return {}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, teacher_file: Path) -> tuple[Path, list[Any]]:
    """Folder of the runs of two processes, and what each rank was told."""
    folder = tmp_path_factory.mktemp("pair")
    return folder, on_ranks(2, folder / "ranks", several_runs, image_folder, folder, teacher_file)


def settings_of_pair(images: Path, out: Path, teacher: Path) -> dict[str, Any]:
    knn = {"train": images / "train", "val": images / "val", "every_epochs": 1, "k": 3}
    return tiny(images, out, teacher=teacher, knn=knn)


def test_two_processes_write_every_row_once(pair: tuple[Path, list[Any]]) -> None:
    told = [(row["kind"], row["step"]) for row in rows(pair[0] / "whole")]
    knn = [("knn", step) for step in (0, 3, 6, 9)]
    assert sorted(told) == sorted([("matching", 0), ("matching", 3), *knn, *(("train", s) for s in (2, 4, 6, 8, 9))])


def test_logged_losses_are_averaged_over_the_ranks(pair: tuple[Path, list[Any]]) -> None:
    each = torch.tensor([one["losses"] for one in pair[1]], dtype=torch.float64)  # [ranks, steps, terms]
    assert (each[0] - each[1]).abs()[:, :3].min() > 0
    train = [row for row in rows(pair[0] / "whole") if row["kind"] == "train"]
    for row, steps in zip(train, ([0, 1], [2, 3], [4, 5], [6, 7], [8]), strict=True):
        found = [row[name] for name in ("loss", "contrastive", "mgd", "accuracy")]
        assert found == pytest.approx(each[:, steps].mean(dim=(0, 1)).tolist(), rel=1e-6)


def test_batchnorm_statistics_of_a_rank_are_its_own(pair: tuple[Path, list[Any]]) -> None:
    for one in pair[1]:
        for step, (before, batch, after) in enumerate(one["means"]):
            torch.testing.assert_close(after, 0.9 * before + 0.1 * batch, rtol=1e-5, atol=1e-6)
            if step % 3:  # an epoch starts with matching and k-NN, which take the statistics of rank 0
                assert torch.equal(before, one["means"][step - 1][2])
    assert not torch.equal(pair[1][0]["means"][1][0], pair[1][1]["means"][1][0])


def test_signal_to_one_rank_stops_all_after_one_step(pair: tuple[Path, list[Any]]) -> None:
    folder, ranks = pair
    step = steps_saved(folder / "stopped")[-1]
    assert 4 <= step <= 6
    assert all(f"after step {step}: the same command continues" in one["told"] for one in ranks)


def test_error_that_only_rank_zero_sees_is_raised_on_all(pair: tuple[Path, list[Any]]) -> None:
    assert all("nowhere is not there: pass a folder of images" in one["missing"] for one in pair[1])


def continue_run(settings: dict[str, Any]) -> None:
    pretrain(**settings)


def test_two_processes_continue_and_end_like_an_uninterrupted_run(
    pair: tuple[Path, list[Any]], image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(pair[0] / "stopped", tmp_path / "run")
    on_ranks(2, tmp_path / "ranks", continue_run, settings_of_pair(image_folder, tmp_path / "run", teacher_file))
    assert_same_end(tmp_path / "run", pair[0] / "whole")


def test_one_process_continues_a_run_of_two(
    pair: tuple[Path, list[Any]], image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(pair[0] / "stopped", tmp_path / "run")
    pretrain(**settings_of_pair(image_folder, tmp_path / "run", teacher_file))
    assert checkpoint(tmp_path / "run", 9)["step"] == 9
    assert [row["step"] for row in rows(tmp_path / "run") if row["kind"] == "train"] == [2, 4, 6, 8, 9]


# a rank that fails


def fail_on_rank_zero() -> str:
    """What a rank is told of an error of rank 0 that nobody expected."""
    dist.init_process_group("gloo")
    try:
        on_rank_zero(lambda: dict[str, str]()["missing"])
    except (KeyError, RankZeroError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        dist.destroy_process_group()
    return ""


def test_an_unexpected_error_of_rank_zero_reaches_all(tmp_path: Path) -> None:
    told = on_ranks(2, tmp_path / "ranks", fail_on_rank_zero)
    assert told == ["KeyError: 'missing'", "RankZeroError: rank 0 failed: KeyError: 'missing'"]


def run_that_fails(settings: dict[str, Any], failing: int, where: str) -> tuple[str, float]:
    """The error a rank ends with when one of them fails in its fifth step, or rank 0 when it saves; and when."""
    update, save = Update.__call__, Checkpoints.save

    def step(self: Update, inputs: Any, finished: int) -> StepOutput:
        if finished == 4 and where == "step" and rank() == failing:
            raise ArithmeticError("told to fail")
        return update(self, inputs, finished)

    def saved(self: Checkpoints, step: int, state: dict[str, Any]) -> Path:
        if step == 6 and where == "save":
            raise MemoryError("told to fail")
        return save(self, step, state)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Update, "__call__", step)
        monkeypatch.setattr(Checkpoints, "save", saved)
        try:
            pretrain(**settings)
        except Exception as error:
            return f"{type(error).__name__}: {error}", time.monotonic()
    return "", 0.0


@pytest.mark.parametrize(("failing", "where"), [(0, "step"), (1, "step"), (0, "save")])
def test_no_rank_waits_for_one_that_failed(failing: int, where: str, image_folder: Path, tmp_path: Path) -> None:
    settings = tiny(image_folder, tmp_path / "run", data={"workers": 1})
    told = on_ranks(2, tmp_path / "ranks", run_that_fails, settings, failing, where)
    assert "told to fail" in told[failing][0]
    other, _ = told[1 - failing]
    assert other.startswith("RankZeroError: rank 0 failed: MemoryError" if where == "save" else "RuntimeError")
    assert abs(told[0][1] - told[1][1]) < DEADLINE / 2  # and not after the two hours a collective may take


def launched(settings: dict[str, Any], stderr: Path) -> Any:
    """`torchrun --nproc-per-node 2 -m mgd_ssl.cli pretrain ...` as the leader of a process group."""
    options = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    args = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "mgd_ssl.cli", "pretrain", *flags(settings)]
    with stderr.open("w") as file:
        return subprocess.Popen(args, stdout=file, stderr=file, start_new_session=True)


@pytest.mark.parametrize("stopped_by", ["SIGTERM to torchrun", "Ctrl-C"])
def test_torchrun_is_stopped_and_the_run_goes_on(
    stopped_by: str, pair: tuple[Path, list[Any]], image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = settings_of_pair(image_folder, run, teacher_file)
    settings["optim"]["epochs"] = 5000
    process = launched(settings, tmp_path / "first")
    try:
        wait_for(lambda: bool(run.is_dir() and steps_saved(run)) or process.poll() is not None)
        if stopped_by == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to torchrun and to the ranks
        else:
            process.terminate()
        assert process.wait(DEADLINE) != 0
    finally:
        process.kill()
    told = (tmp_path / "first").read_text()
    step = steps_saved(run)[-1]
    # right after a checkpoint of an epoch's end the matching may be under way
    places = f"after step {step}", "between two epochs"
    assert any(f"{place}: the same command continues from there" in told for place in places), told
    assert checkpoint(run, step)["step"] == step

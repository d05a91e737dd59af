"""What one process and two have to find alike, for tests/test_distributed.py: `all_checks` runs on every rank."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mgd_ssl import MGD, GuidedMoCo, MoCo, UserError
from mgd_ssl.config import RuntimeConfig
from mgd_ssl.distillation.bingo import Bingo
from mgd_ssl.distillation.compress import CompRess
from mgd_ssl.distillation.disco import DisCo
from mgd_ssl.distillation.guide import Guide
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.distillation.seed import Seed
from mgd_ssl.distillation.simreg import SimReg
from mgd_ssl.distillation.term import CROPS, Seen
from mgd_ssl.distillation.weighting import Weight
from mgd_ssl.networks.backbones import build_encoder
from mgd_ssl.run.runtime import on_rank_zero
from mgd_ssl.run.runtime import process as this_process
from mgd_ssl.run.stop import StopRequest
from moco.dist import gather_batch, rank, world_size
from moco.shuffle import permutation, shuffle_batch, unshuffle_batch
from moco.split_norm import split_batch_norms
from tests.runs import (
    Stepper,
    tiny,
)

TAPS = ["stages.0.1", "stages.1.1"]


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
    terms: dict[str, Any] = {
        "seed": Seed(6, 24, teacher_temperature=0.1), "disco": DisCo(), "simreg": SimReg(nn.Linear(8, 10)),
        "compress": CompRess(nn.Linear(8, 10), 10, 16), "bingo": Bingo(6, 24, warm_epochs=1),
    }  # fmt: skip
    for name in ("seed", "disco", "simreg", "compress"):
        terms[name].needs = terms[name].needs._replace(student=terms[name].needs.student | {CROPS})
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
        if CROPS in others:
            others[CROPS] = part(torch.stack([im_q[..., ::2, ::2], im_k[..., 1::2, ::2]], dim=1)).flatten(0, 1)
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


def join_and_exchange() -> bool:
    dist.init_process_group("gloo")
    right = shuffled_images()
    dist.destroy_process_group()
    return right

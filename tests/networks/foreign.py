"""Checkpoints as other programs write them: their modules around a thin backbone, told from their published code.

MoCo v3: github.com/facebookresearch/moco-v3/moco/builder.py; SwAV: swav/src/resnet50.py, main_swav.py; SimSiam:
simsiam/builder.py; Barlow Twins: barlowtwins/main.py; VICReg: vicreg/main_vicreg.py; DINO: dino/main_dino.py, utils.py,
vision_transformer.py; VISSL: names in github.com/facebookresearch/vissl/issues/292.
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_ssl.networks.backbones import build_backbone, build_encoder, head_of, set_head
from moco import MoCo

N = TypeVar("N", bound=nn.Module)
WIDTH = 128  # of thin_resnet10's feature
State = dict[str, Tensor]


class Foreign(NamedTuple):
    """A checkpoint, and what its network says of images."""

    checkpoint: dict[str, Any]
    feature: Callable[[Tensor], Tensor]  # images -> [N, WIDTH]
    embedding: Callable[[Tensor], Tensor] | None  # feature -> what the program's head makes of it


def randomised(network: N, seed: int = 0) -> N:
    """Every tensor random, as after training, and the output depends on the input; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        drawn = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            value.copy_(drawn.abs() + 0.5)
        elif value.is_floating_point() and value.ndim > 1:
            value.copy_(drawn * (2 / value[0].numel()) ** 0.5)
        elif value.is_floating_point():
            value.copy_(drawn * 0.3 + (1 if name.endswith("weight") else 0))
    return network.eval()


def backbone(seed: int = 0) -> nn.Module:
    network = build_backbone("thin_resnet10")
    network.fc = nn.Identity()
    return randomised(network, seed)


def in_ddp(state: State) -> State:
    return {f"module.{name}": value for name, value in state.items()}


def mlp(*widths: int, bias: bool = True, last_norm: bool = False, last_bias: bool = True) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, ..., Linear."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=bias), nn.BatchNorm1d(after), nn.ReLU()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)


def moco_v2() -> Foreign:
    model = MoCo(build_encoder("thin_resnet10", dim=16), dim=16, queue_size=8)
    randomised(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    encoder, head = model.encoder_q, head_of(model.encoder_q)
    set_head(encoder, nn.Identity())
    state = {
        **encoder.state_dict(prefix="module.encoder_q."), **head.state_dict(prefix="module.encoder_q.fc."),
        **model.encoder_k.state_dict(prefix="module.encoder_k."), "module.queue": model.queue,
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }  # fmt: skip
    content = {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimizer.state_dict()}
    return Foreign(content, encoder, head)


def moco_v1() -> Foreign:
    query, key, head = backbone(0), backbone(1), randomised(nn.Linear(WIDTH, 16))
    state = {
        **query.state_dict(prefix="module.encoder_q."), **head.state_dict(prefix="module.encoder_q.fc."),
        **key.state_dict(prefix="module.encoder_k."), "module.queue": torch.randn(16, 8),
    }  # fmt: skip
    return Foreign({"state_dict": state}, query, head)


def moco_v3() -> Foreign:
    base, momentum = backbone(0), backbone(1)
    head = randomised(mlp(WIDTH, 24, 8, bias=False, last_norm=True, last_bias=False))
    state = {
        **base.state_dict(prefix="module.base_encoder."), **head.state_dict(prefix="module.base_encoder.fc."),
        **momentum.state_dict(prefix="module.momentum_encoder."),
        **mlp(8, 24, 8).state_dict(prefix="module.predictor."),
    }  # fmt: skip
    return Foreign({"epoch": 1000, "arch": "resnet50", "state_dict": state, "scaler": {"scale": 1.0}}, base, head)


def swav() -> Foreign:
    network = backbone()
    head = randomised(mlp(WIDTH, 24, 8))
    state = {**network.state_dict(), **head.state_dict(prefix="projection_head.")}
    state["prototypes.weight"] = torch.randn(30, 8)
    return Foreign(in_ddp(state), network, head)  # the published files are the state dict itself


def simsiam() -> Foreign:
    network, head = backbone(), randomised(mlp(WIDTH, 24, 24, 8, bias=False, last_norm=True))
    state = {
        **network.state_dict(prefix="encoder."), **head.state_dict(prefix="encoder.fc."),
        **mlp(8, 24, 8).state_dict(prefix="predictor."),
    }  # fmt: skip
    return Foreign({"epoch": 100, "state_dict": in_ddp(state)}, network, head)


def projector(bias: bool) -> Foreign:
    """Barlow Twins' without biases, VICReg's with all but the last."""
    network, head = backbone(), randomised(mlp(WIDTH, 24, 24, 8, bias=bias, last_bias=False))
    state = {**network.state_dict(prefix="backbone."), **head.state_dict(prefix="projector.")}
    if not bias:
        state |= nn.BatchNorm1d(8, affine=False).state_dict(prefix="bn.")
    return Foreign({"epoch": 1000, "model": in_ddp(state), "optimizer": {"state": {}}}, network, head)


def barlow_twins() -> Foreign:
    return projector(bias=False)


def vicreg() -> Foreign:
    return projector(bias=True)


class DINOHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 8))
        self.last_layer = nn.Linear(8, 30, bias=False)

    def forward(self, feature: Tensor) -> Tensor:
        logits: Tensor = self.last_layer(F.normalize(self.mlp(feature), dim=1))
        return logits


def dino() -> Foreign:
    teacher, student, head = backbone(0), backbone(1), randomised(DINOHead())
    state = {**teacher.state_dict(prefix="backbone."), **head.state_dict(prefix="head.")}
    of_student = {**student.state_dict(prefix="backbone."), **DINOHead().state_dict(prefix="head.")}
    arguments = argparse.Namespace(arch="resnet50", lr=0.3, output_dir="/checkpoint/dino")
    content = {
        "student": in_ddp(of_student), "teacher": in_ddp(state), "optimizer": {"state": {}}, "epoch": 800,
        "args": arguments, "dino_loss": {"center": torch.zeros(1, 30)},
    }  # fmt: skip
    assert isinstance(head, DINOHead)
    return Foreign(content, teacher, head.mlp)


def vissl() -> Foreign:
    network = backbone()
    trunk, heads = network.state_dict(prefix="_feature_blocks."), mlp(WIDTH, 24, 8).state_dict(prefix="0.clf.")
    model = {"model": {"trunk": trunk, "heads": heads}}
    return Foreign({"phase_idx": 1, "classy_state_dict": {"base_model": model}}, network, None)


def plain() -> Foreign:
    network = backbone()
    return Foreign(dict(network.state_dict()), network, None)


PROGRAMS: dict[str, Callable[[], Foreign]] = {
    "moco_v1": moco_v1,
    "moco_v2": moco_v2,
    "moco_v3": moco_v3,
    "swav": swav,
    "simsiam": simsiam,
    "barlow_twins": barlow_twins,
    "vicreg": vicreg,
    "dino": dino,
    "vissl": vissl,
    "plain": plain,
}

"""What a network costs, counted from its shapes and not timed: the same numbers on every machine."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mgd_ssl.networks.backbones import BACKBONES, build_backbone, trunk
from mgd_ssl.run.read import Run


class Size(NamedTuple):
    """Of a backbone without its classifier."""

    parameters: int
    megabytes: float  # of its state in float32, in units of 10^6 bytes
    multiply_adds: int  # of the convolutions for one image


class SizeRow(NamedTuple):
    """A line of the page's table."""

    arch: str
    role: str  # "student", "teacher" or both
    image_size: int
    size: Size


@cache
def size_of(arch: str, image_size: int) -> Size:
    """Parameters, megabytes and multiply-adds of a backbone for an image of this edge in pixels.

    Raises:
        UserError: for an architecture this version does not know.
    """
    counted: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        counted.append(output[0].numel() * module.weight[0].numel())  # weight [C_out, C_in / groups, h, w]

    with torch.device("meta"):  # shapes alone: no memory, no arithmetic
        network = trunk(build_backbone(arch)).eval()
        handles = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, nn.Conv2d)]
        with torch.no_grad():
            network(torch.empty(1, 3, image_size, image_size))
    for handle in handles:
        handle.remove()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    state = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    return Size(parameters, state / 1e6, sum(counted))


def size_rows(runs: Sequence[Run]) -> list[SizeRow]:
    """Students and teachers of these runs, the largest first; those this version does not know are left out."""
    roles: dict[tuple[str, int], list[str]] = {}
    for run in runs:
        image_size = run.config["data"].get("image_size")
        if not isinstance(image_size, int):
            continue
        networks = [(run.student, "student"), *([(str(run.teacher["arch"]), "teacher")] if run.teacher else [])]
        for arch, role in networks:
            found = roles.setdefault((arch, image_size), [])
            if arch in BACKBONES and role not in found:
                found.append(role)
    rows = [
        SizeRow(arch, " and ".join(sorted(found)), image_size, size_of(arch, image_size))
        for (arch, image_size), found in roles.items()
        if found
    ]
    return sorted(rows, key=lambda row: -row.size.multiply_adds)


def savings(runs: Sequence[Run]) -> list[str]:
    """`resnet18 has 48 % of the parameters and 44 % of the multiply-adds of resnet50, its teacher.`, once a pair."""
    by_network = {(row.arch, row.image_size): row.size for row in size_rows(runs)}
    told: list[str] = []
    for run in runs:
        if run.teacher is None:
            continue
        image_size = run.config["data"].get("image_size")
        small, large = by_network.get((run.student, image_size)), by_network.get((run.teacher["arch"], image_size))
        if small is not None and large is not None:
            told.append(
                f"{run.student} has {small.parameters / large.parameters:.0%} of the parameters and "
                f"{small.multiply_adds / large.multiply_adds:.0%} of the multiply-adds of its teacher, "
                f"{run.teacher['arch']}.".replace("%", " %")
            )
    return list(dict.fromkeys(told))

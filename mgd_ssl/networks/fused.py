"""A frozen teacher whose convolutions, biases, shortcuts and ReLUs are one kernel each, where a GPU proves it."""

import copy
import logging
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from mgd_ssl.networks.convolution_relu import convolution_relu, plain
from mgd_ssl.networks.joining import Joining
from mgd_ssl.networks.teacher import Teacher

ROUNDINGS = 4  # of a type, by which the same convolution may differ; the largest value's is 1
ROUNDING = 2**-11  # at least: that of TF32
THROUGH = 8  # times as much through a whole network

logger = logging.getLogger("mgd_ssl")


def fused_teacher(teacher: Teacher) -> Teacher | None:
    """A teacher of the same weights and taps, with fused convolutions; None, where there is none to fuse.

    Args:
        teacher: folded, in the precision of the step, on its device; it stays as it is.
    """
    try:
        graph = Joining(teacher.backbone, {stage.relu for stage in teacher.stages}).joined()
    except Exception as error:  # whatever the network's own code raises when it gets no tensor
        logger.debug("the teacher's convolutions are not fused, as it cannot be traced: %s", error)
        return None
    if graph is None:
        return None
    backbone = copy.copy(teacher.backbone)  # its class, hooks and names, with another forward pass
    backbone._modules = {**backbone._modules, "fused": graph}
    backbone.forward = graph.forward
    return Teacher(backbone, teacher.report, teacher.stages, teacher.head)


def proven(fused: Teacher, teacher: Teacher, images: Tensor) -> Teacher:
    """The fused teacher with those convolutions fused that are right on these images; the other one, where it is wrong.

    cuDNN chooses a kernel by sizes, so the images are to be those of a step. Call it under the step's autocast.

    Args:
        fused: made by `fused_teacher`.
        teacher: what it was made from.
        images: [N, 3, H, W].
    """
    graph = fused.backbone.get_submodule("fused")
    assert isinstance(graph, GraphModule)
    trial = Trial(graph)
    try:
        with torch.compiler.set_stance("force_eager"):
            fused.backbone.forward = trial.run
            fused.watched(images)
            for node in trial.refused:
                node.target = plain
            graph.recompile()
            fused.backbone.forward = graph.forward
            pairs = zip(tensors(fused, images), tensors(teacher, images), strict=True)
            why = "" if all(close(*pair, THROUGH) for pair in pairs) else "it would yield something else"
    except RuntimeError as error:
        why = said(error)
    if why:
        logger.warning("the teacher's convolutions are not fused with their ReLUs, which only costs time: %s", why)
        return teacher
    if trial.refused:
        logger.warning(
            "%d of %d convolutions of the teacher are not fused with their ReLUs, which only costs time: %s",
            len(trial.refused), trial.count, next(iter(trial.refused.values())),
        )  # fmt: skip
    return fused


def tensors(teacher: Teacher, images: Tensor) -> list[Tensor]:
    """All that a teacher yields for images."""
    maps, output = teacher.watched(images)
    return [*maps, output]


def said(error: RuntimeError) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


class Trial(Interpreter):
    """Runs a network, and every fused convolution in it both ways; goes on with the plain one.

    Args:
        graph: made by `Joining`.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.count = 0
        self.refused: dict[Node, str] = {}  # and why

    def run_node(self, n: Node) -> Any:
        """The value of one node."""
        if n.target is not convolution_relu:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        expected = plain(*args)
        self.count += 1
        if why := refusal(args, expected):
            self.refused[n] = why
        return expected


def refusal(args: tuple[Any, ...], expected: Tensor) -> str:
    """Why a fused convolution is not taken, nothing when it is."""
    try:
        # without a shortcut cuDNN adds its own output times 0, which must not matter, whatever was in that memory
        torch.full_like(expected, torch.nan)
        found = convolution_relu(*args)
    except RuntimeError as error:
        return said(error)
    if (found.dtype, layout(found)) != (expected.dtype, layout(expected)):
        return f"it yields {found.dtype}, {found.stride()} in place of {expected.dtype}, {expected.stride()}"
    return "" if close(found, expected) else "it yields something else"


def layout(maps: Tensor) -> tuple[bool, bool]:
    """Whether maps [N, C, H, W] are contiguous, and channels_last."""
    return maps.is_contiguous(), maps.is_contiguous(memory_format=torch.channels_last)


def close(found: Tensor, expected: Tensor, times: int = 1) -> bool:
    """Whether tensors are the same up to some roundings of their type, each value and all together."""
    tolerance = times * ROUNDINGS * max(torch.finfo(expected.dtype).eps / 2, ROUNDING)
    difference = found.float() - expected.float()
    # False for NaN
    most = bool(difference.abs().max() <= 2 * tolerance * expected.float().abs().max())
    return most and bool(difference.norm() <= tolerance * expected.float().norm())

"""The teacher of a training step in 8 bits on a CPU: frozen, so ranges and weights are fixed once, before training.

Post-training static quantisation as in Jacob et al. 2018 (arXiv:1712.05877, section 2): weights symmetric per output
channel, inputs per tensor with a zero point. Only convolutions compute in 8 bits, through oneDNN's kernels of PyTorch's
x86 backend; additions and all that is tapped stay float32. `torch.ao` is not used: its tensors that know their scale
are deprecated, and what it makes of a network has lost its modules, and with them the taps.
"""

import copy
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from mgd_ssl.errors import UserError
from mgd_ssl.networks.data_flow import DataFlow, is_common
from mgd_ssl.networks.teacher import Teacher
from moco.dist import max_over_ranks

LEVELS, WEIGHT_LEVELS = 255, 127  # largest byte of an input; largest magnitude of a weight
NATIVELY = {"avx512_vnni", "avx_vnni", "amx_int8"}  # flags in /proc/cpuinfo; without them sums of products saturate
ABOUT = Path("/proc/cpuinfo")

Ranges = dict[str, tuple[float, float]]  # least and largest input of convolutions, by their names in the backbone


def check_int8(teacher: Teacher | None, device: torch.device) -> None:
    """Raise UserError where a teacher cannot be computed in 8 bits: by its device, processor or network."""
    asked = "teacher_precision is 'int8', which"
    if device.type != "cpu":
        raise UserError(f"{asked} is for CPUs, not {device.type}: pass --teacher-precision bfloat16")
    if not has_native_int8():
        raise UserError(f"{asked} this processor has no instructions for (VNNI): pass --teacher-precision auto")
    if teacher is None:
        return
    inside = sum(module.weight.numel() for module in eighths(teacher.backbone).values())
    if 2 * inside < sum(weights.numel() for weights in teacher.backbone.parameters()):
        raise UserError(f"{asked} is for convolutions, and most of the teacher is none: pass --teacher-precision auto")


def has_native_int8() -> bool:
    """Whether the processor multiplies bytes and sums them in 32 bits itself."""
    return "onednn" in torch.backends.quantized.supported_engines and (
        ABOUT.exists() and bool(NATIVELY & set(ABOUT.read_text().split()))
    )


def eighths(backbone: nn.Module) -> dict[str, nn.Conv2d]:
    """Convolutions that are computed in 8 bits, by name: all but grouped ones, which lose most by it."""
    return {name: module for name, module in backbone.named_modules() if is_common(module)}


@torch.no_grad()
def seen_ranges(teacher: Teacher, batches: Iterable[Tensor]) -> Ranges:
    """Ranges of the inputs of `eighths` over images [N, 3, H, W], and over the images of all ranks."""
    names = list(eighths(teacher.backbone))
    most = torch.zeros(len(names), 2)  # of the negated inputs, and of the inputs; zero is in every range
    with ExitStack() as hooks:
        for row, name in zip(most, names, strict=True):

            def look(module: nn.Module, inputs: tuple[Tensor, ...], row: Tensor = row) -> None:
                low, high = inputs[0].aminmax()
                row.copy_(torch.maximum(row, torch.stack([-low, high])))

            hook = teacher.backbone.get_submodule(name).register_forward_pre_hook(look)
            hooks.callback(hook.remove)
        for images in batches:
            teacher.backbone.forward(images)  # not the compiled one, which does not know the hooks
    low, high = max_over_ranks(most).T.tolist()
    return {name: (-each, other) for name, each, other in zip(names, low, high, strict=True)}


def int8_teacher(teacher: Teacher, ranges: Ranges) -> Teacher:
    """A copy of a teacher whose convolutions compute in 8 bits; its maps are float32.

    The teacher itself stays as it is, for matching and evaluation.

    Args:
        teacher: on the CPU.
        ranges: by `seen_ranges`; what is beyond them is cut off.
    """
    backbone = copy.deepcopy(teacher.backbone)
    convolutions = eighths(backbone)
    followers = read_by_convolutions(backbone, convolutions, {stage.relu for stage in teacher.stages})
    for name, module in convolutions.items():
        parent, _, last = name.rpartition(".")
        leaves = ranges[followers[name]][1] if name in followers else None
        setattr(backbone.get_submodule(parent), last, Int8Conv2d(module, ranges[name], leaves))
    return Teacher(backbone, teacher.report, teacher.stages, copy.deepcopy(teacher.head))


def read_by_convolutions(backbone: nn.Module, convolutions: Collection[str], tapped: Collection[str]) -> dict[str, str]:
    """Of convolutions whose output goes through a ReLU to other convolutions alone: their names, and one that reads it.

    None, where the data flow cannot be followed.

    Args:
        backbone: whose BatchNorms may be identities.
        convolutions: names.
        tapped: names of ReLUs whose last input is looked at.
    """
    try:
        flow = DataFlow(backbone)
    except Exception:  # whatever the network's own code raises when it gets no tensor
        return {}
    found = {}
    for node in flow.nodes:
        module = flow.module(node)
        if module is None or node.target not in convolutions or flow.calls[module] != 1:
            continue
        relus = flow.readers(node)
        if len(relus) != 1 or type(flow.module(relus[0])) is not nn.ReLU:
            continue
        if relus[0].target in tapped and flow.last[relus[0].target] is relus[0]:
            continue
        readers = flow.readers(relus[0])
        inside = [flow.module(each) for each in readers if each.target in convolutions]
        if readers and len(inside) == len(readers) and all(each and flow.calls[each] == 1 for each in inside):
            found[str(node.target)] = str(readers[0].target)
    return found


class Int8Conv2d(nn.Module):
    """A convolution in 8 bits, of floats or of the bytes that another one left.

    Args:
        convolution: whose weights and bias it has.
        limits: range of its input.
        leaves: where a ReLU and then convolutions alone read its output: the largest value they are to see, for which
            it takes the ReLU itself and leaves bytes [N, C, H, W]; None: it leaves float32.
    """

    def __init__(self, convolution: nn.Conv2d, limits: tuple[float, float], leaves: float | None = None) -> None:
        super().__init__()
        low, high = limits
        self.scale = (high - low) / LEVELS or 1.0
        self.zero = round(-low / self.scale)
        self.out_scale = 1.0 if leaves is None else leaves / LEVELS or 1.0
        self.out = torch.float32 if leaves is None else torch.uint8
        self.offset = torch.tensor(self.zero + 0.5)  # rounds, as conversion to bytes cuts off
        weight = convolution.weight.detach()
        self.scales = weight.abs().amax((1, 2, 3)).clamp_min(torch.finfo(weight.dtype).tiny) / WEIGHT_LEVELS
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if convolution.bias is None else convolution.bias.detach()
        self.geometry = [list(each) for each in (convolution.stride, convolution.padding, convolution.dilation)]
        whole = (weight / self.scales[:, None, None, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qconv_prepack(whole, self.scales, self.scale, self.zero, *self.geometry, 1, None)

    def forward(self, images: Tensor) -> Tensor:
        """Float32 [N, C, H, W], or bytes of the same layout by the scale of this convolution's input."""
        if images.dtype != torch.uint8:
            images = torch.add(self.offset, images, alpha=1 / self.scale).clamp_(0, LEVELS).to(torch.uint8)
        output: Tensor = torch.ops.onednn.qconv2d_pointwise(
            images, self.scale, self.zero, self.weight, self.scales, self.zeros, self.bias, *self.geometry, 1,
            self.out_scale, 0, self.out, "none" if self.out == torch.float32 else "relu", [], "",
        )  # fmt: skip
        return output

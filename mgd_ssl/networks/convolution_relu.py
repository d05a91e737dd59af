"""A convolution that adds its bias, a shortcut and takes the ReLU in one kernel of cuDNN.

Alone, a bias, a sum and a ReLU read and write whole maps; cuDNN does them before it writes its output, after the
convolution's own multiplications (https://docs.nvidia.com/deeplearning/cudnn, runtime fusion). PyTorch has such
operations since 1.10, for frozen TorchScript: they know neither autograd nor tensors without values, so that one of our
own stands before them, whose maps are channels_last.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mgd_ssl.run.runtime import Runtime

OPERATIONS = ("cudnn_convolution_relu", "cudnn_convolution_add_relu")  # of ATen
NAME = "mgd_ssl::convolution_relu"

torch.library.define(
    NAME, "(Tensor images, Tensor weight, Tensor bias, Tensor? added, int[] geometry) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)  # fmt: skip


def plain(images: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, geometry: Sequence[int]) -> Tensor:
    """ReLU of a convolution with its bias and of what is added, [N, C, H, W], one after the other.

    Args:
        images: maps [N, C_in, H_in, W_in], of any precision.
        weight: [C, C_in, k, k]; it is computed in its precision.
        bias: [C].
        added: [N, C, H, W], or None.
        geometry: strides, paddings and dilations, each down and across.
    """
    output = _convolved(images, weight, bias, geometry)
    if added is not None:
        output += added
    return output.relu_()


def _convolved(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Sequence[int]) -> Tensor:
    return F.conv2d(images.to(weight.dtype), weight, bias, geometry[:2], geometry[2:4], geometry[4:])


def _without_values(
    images: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, geometry: Sequence[int]
) -> Tensor:
    shape = _convolved(images, weight, None, geometry).shape
    return torch.empty(shape, dtype=weight.dtype, device=images.device, memory_format=torch.channels_last)


def _by_cudnn(images: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, geometry: Sequence[int]) -> Tensor:
    images, where = images.to(weight.dtype), (geometry[:2], geometry[2:4], geometry[4:], 1)
    output: Tensor
    if added is None:
        output = torch.ops.aten.cudnn_convolution_relu(images, weight, bias, *where)
    else:
        output = torch.ops.aten.cudnn_convolution_add_relu(images, weight, added, 1.0, bias, *where)
    return output.contiguous(memory_format=torch.channels_last)  # as it is already


def _on_a_cpu(images: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, geometry: Sequence[int]) -> Tensor:
    return plain(images, weight, bias, added, geometry).contiguous(memory_format=torch.channels_last)


torch.library.register_fake(NAME, _without_values)
torch.library.impl(NAME, "CUDA", _by_cudnn)
torch.library.impl(NAME, "CPU", _on_a_cpu)
convolution_relu = torch.ops.mgd_ssl.convolution_relu.default


def can_fuse(runtime: Runtime) -> bool:
    """Whether convolutions are to be tried fused: on GPUs, wherever cuDNN may choose among all its kernels.

    Compiled networks are no exception, as what the compiler makes of a ReLU still reads and writes a whole map.
    """
    return (
        runtime.device.type == "cuda"
        and runtime.memory_format == torch.channels_last
        and torch.version.hip is None
        and torch.backends.cudnn.enabled
        and not torch.are_deterministic_algorithms_enabled()  # these operations do not ask
        and all(hasattr(torch.ops.aten, name) for name in OPERATIONS)
    )

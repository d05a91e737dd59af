"""Networks brought to where they are computed."""

import torch
from torch import Tensor, nn
from torchvision.models import ResNet


def placed(network: nn.Module, device: torch.device, memory_format: torch.memory_format) -> nn.Module:
    """The network itself, on a device and in a memory format.

    On a CPU the last stage of a ResNet keeps its weights, and gets its maps, in the plain order of axes all the same.
    There maps are small and weights large: torch copies the gradients of weights to channels_last element by element,
    with 512 channels at strides that miss the cache, which takes as long as the gradients themselves.

    Args:
        network: or a module that holds networks; placing one again changes nothing.
        device: of its weights and images.
        memory_format: of its weights, and of the images it will see.
    """
    network.to(device).to(memory_format=memory_format)
    if device.type == "cpu":
        for resnet in network.modules():
            if isinstance(resnet, ResNet):
                _keep_plain(resnet.layer4)
    return network


def _keep_plain(stage: nn.Module) -> None:
    stage.to(memory_format=torch.contiguous_format)
    if _plain not in stage._forward_pre_hooks.values():
        stage.register_forward_pre_hook(_plain)


def _plain(stage: nn.Module, images: tuple[Tensor]) -> tuple[Tensor]:
    return (images[0].contiguous(),)

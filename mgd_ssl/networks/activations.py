"""Maps before the activations of any network, found by looking at one image."""

import torch
from torch import Tensor, nn

ACTIVATIONS = ("ReLU", "ReLU6", "SiLU", "Swish", "Hardswish", "HardSwish", "GELU", "LeakyReLU", "ELU", "Mish", "PReLU")


@torch.no_grad()
def maps_before_activations(network: nn.Module, size: int) -> dict[str, Tensor]:
    """What goes into activations for one image of this size, [1, C, H, W], by module name, in the order of the calls.

    An activation that is called several times counts with its last call.
    """
    called: dict[str, Tensor] = {}
    modes = {module: module.training for module in network.modules()}
    network.eval()
    hooks = []
    for name, module in network.named_modules():
        if type(module).__name__ in ACTIVATIONS:

            def keep(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if inputs[0].ndim == 4:
                    called.pop(name, None)
                    called[name] = inputs[0]

            hooks.append(module.register_forward_pre_hook(keep))
    try:
        network(torch.zeros(1, 3, size, size, device=next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return called


def norm_before(network: nn.Module, name: str) -> str:
    """The BatchNorm whose output alone enters a ReLU, by their module names; empty where that is not known.

    Found by their places: the norm before it in the same sequence, or timm's norm that holds its activation.
    """
    outer, dot, last = name.rpartition(".")
    if type(network.get_submodule(name)).__name__ not in ("ReLU", "ReLU6"):
        return ""
    parent = network.get_submodule(outer)
    if isinstance(parent, nn.BatchNorm2d):
        return outer
    if not isinstance(parent, nn.Sequential) or not last.isdigit() or last == "0":
        return ""
    before = f"{outer}{dot}{int(last) - 1}"
    return before if isinstance(network.get_submodule(before), nn.BatchNorm2d) else ""

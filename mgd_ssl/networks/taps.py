"""Read the pre-ReLU maps of any network by module name."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn


class FeatureTaps:
    """Forward pre-hooks on named ReLUs that hand out what goes into them.

    The tapped ReLUs are made out-of-place: an in-place ReLU would overwrite the map one line after it was read,
    for hooks and `torch.fx` alike. A ReLU module that its block calls several times is read at its last call,
    which in torchvision's ResNets is the one after the residual sum.

    Hooks are on this network's modules alone and leave its outputs and state dict as they are.

    Args:
        network: any module.
        names: dotted names of its ReLU modules, for instance `layer1.1.relu`.

    Raises:
        ValueError: when a name is not a module of the network, or not a ReLU-like module.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.names = list(names)
        self._maps: list[Tensor | None] | None = None  # filled while recording
        modules = dict(network.named_modules())
        for position, name in enumerate(self.names):
            if name not in modules:
                near = [known for known, module in modules.items() if isinstance(module, nn.ReLU)]
                raise ValueError(f"{name!r} is no module of this network: its ReLUs are {', '.join(near) or 'none'}")
            if hasattr(modules[name], "inplace"):
                modules[name].inplace = False
            modules[name].register_forward_pre_hook(self._hook(position))

    def _hook(self, position: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self._maps is not None:
                self._maps[position] = inputs[0]

        return keep

    @contextmanager
    def record(self) -> Iterator[list[Tensor]]:
        """Collect the maps of the forward passes inside the block.

        Yields:
            A list with one [N, C, H, W] map for each name, in the order of the names: those of the last forward pass.

        Raises:
            RuntimeError: when a tapped module was not called inside the block.
        """
        maps: list[Tensor | None] = [None] * len(self.names)
        self._maps = maps
        try:
            yield cast(list[Tensor], maps)
        finally:
            self._maps = None
        missing = [name for name, recorded in zip(self.names, maps, strict=True) if recorded is None]
        if missing:
            raise RuntimeError(f"no forward pass went through {', '.join(missing)} while its map was recorded")


class HeadTap:
    """A forward hook on a network's head that hands out what goes into it and what comes out.

    Args:
        network: any module.
        name: dotted name of its head; empty: nothing is read.
    """

    def __init__(self, network: nn.Module, name: str = "") -> None:
        self._passed: list[Tensor] | None = None  # filled while recording
        self.name = name
        if name:
            network.get_submodule(name).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._passed is not None:
            self._passed[:] = [inputs[0], output]

    @contextmanager
    def record(self) -> Iterator[list[Tensor]]:
        """Yields a list that, after the block, holds feature [N, d] and output [N, dim] of its last forward pass;
        nothing where there is no head, or no pass.
        """
        passed: list[Tensor] = []
        self._passed = passed
        try:
            yield passed
        finally:
            self._passed = None


def map_sizes(network: nn.Module, names: Sequence[str], size: int) -> list[list[int]]:
    """[H, W] of the maps that modules are given for images of this size."""
    return [shape[2:] for shape in map_shapes(network, names, size)]


@torch.no_grad()
def map_shapes(network: nn.Module, names: Sequence[str], size: int) -> list[list[int]]:
    """[1, C, H, W] of what modules are given for one image of this size."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    with FeatureTaps(network, names).record() as maps:
        network(torch.zeros(1, 3, size, size))
    for module, mode in modes.items():
        module.training = mode
    return [list(map_.shape) for map_ in maps]

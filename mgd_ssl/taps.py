"""Read the pre-ReLU maps of any network by module name."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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
        self._recording = False
        self._maps: dict[str, Tensor] = {}
        modules = dict(network.named_modules())
        for name in self.names:
            if name not in modules:
                near = [known for known, module in modules.items() if isinstance(module, nn.ReLU)]
                raise ValueError(f"{name!r} is no module of this network: its ReLUs are {', '.join(near) or 'none'}")
            if hasattr(modules[name], "inplace"):
                modules[name].inplace = False
            modules[name].register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self._recording:
                self._maps[name] = inputs[0]

        return keep

    @contextmanager
    def record(self) -> Iterator[list[Tensor]]:
        """Collect the maps of the forward passes inside the block.

        Yields:
            A list that holds, after the block, one [N, C, H, W] map for each name, in the order of the names.

        Raises:
            RuntimeError: when a tapped module was not called inside the block.
        """
        maps: list[Tensor] = []
        self._recording = True
        try:
            yield maps
            missing = [name for name in self.names if name not in self._maps]
            if missing:
                raise RuntimeError(f"no forward pass went through {', '.join(missing)} while its map was recorded")
            maps.extend(self._maps[name] for name in self.names)
        finally:
            self._recording = False
            self._maps.clear()

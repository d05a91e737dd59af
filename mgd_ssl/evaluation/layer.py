"""The output of any module of a network as features."""

import torch
from torch import Tensor, nn

from mgd_ssl.errors import UserError, nearest


class LayerOutput(nn.Module):
    """A network as far as one of its modules: [N, 3, H, W] -> [N, d], flat.

    Args:
        network: whose module it is.
        name: dotted name of the module.
        keep_positions: of maps [C, H, W], instead of the mean over them.

    Raises:
        UserError: when the network has no module of this name, naming the nearest.
    """

    def __init__(self, network: nn.Module, name: str, keep_positions: bool = False) -> None:
        super().__init__()
        known = [each for each, _ in network.named_modules() if each]
        if name not in known:
            raise UserError(
                f"layer is {name!r}, which is no module of this network{nearest(name, known)}: choose one of its "
                f"{len(known)} modules, such as {', '.join(each for each in known if '.' not in each)}"
            )
        self.network, self.name, self.keep_positions = network, name, keep_positions
        self.shape: tuple[int, ...] = ()  # of one image's features, known after the first pass
        self._seen: Tensor | None = None
        network.get_submodule(name).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        # a copy: the module that follows may write to it
        self._seen = output.clone() if isinstance(output, Tensor) else None

    def forward(self, images: Tensor) -> Tensor:
        """Features [N, d] of images [N, 3, H, W]; d may be C * H * W."""
        self._seen = None
        self.network(images)
        seen, self._seen = self._seen, None
        if seen is None or seen.ndim < 2 or len(seen) != len(images):
            raise UserError(f"layer is {self.name!r}, whose output is no tensor with a row an image: choose another")
        if not self.keep_positions and seen.ndim > 2:
            seen = seen.float().flatten(2).mean(dim=2)
        self.shape = tuple(seen.shape[1:])
        return torch.flatten(seen, 1)

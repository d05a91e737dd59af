"""Fold BatchNorms into the convolutions before them, in any network whose data flow can be followed.

`torch.fx.experimental.optimization.fuse` is not used: it gives back another network (a GraphModule, whose containers
have lost their class and hooks and which has lost its BatchNorms' names), and of a convolution that is called twice it
folds both calls, which is wrong.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mgd_ssl.networks.data_flow import DataFlow

EDGE = 96  # pixels of the random image on which both networks are compared; some cannot do with fewer
TOLERANCE = 1e-4  # of their difference, relative to the largest value

logger = logging.getLogger("mgd_ssl")
Pair = tuple[nn.Conv2d, nn.BatchNorm2d]
Look = Callable[[Tensor], Tensor | Sequence[Tensor]]


@torch.no_grad()
def fold_batch_norms(network: nn.Module, look: Look | None = None) -> int:
    """Fold in place: convolutions stay the modules they are, with other weights, and BatchNorms become identities.

    A pair is folded where the convolution's output goes into the BatchNorm alone and both are called once. A network
    that cannot be traced, or yields something else afterwards, is left as it was. A folded BatchNorm's hooks go with
    it. Do it on the CPU: there the rounding of TF32 cannot pass for a difference.

    Args:
        network: in eval mode; takes images [N, 3, H, W].
        look: what is to stay the same of a network for images; its output when None.

    Returns:
        The number of BatchNorms folded.
    """
    look = look or network
    try:
        pairs = pairs_by_data_flow(network)
        if not pairs:
            return 0
        images = _random_image(network)
        before = _seen(look, images)
    except Exception as error:  # whatever the network's own code raises when it gets no tensor, or a small one
        logger.debug("BatchNorms are not folded, as the network cannot be traced or tried: %s", error)
        return 0
    undo = [_fold(network, *pair) for pair in pairs]
    try:
        if all(map(_close, _seen(look, images), before)):
            return len(pairs)
        logger.debug("BatchNorms are not folded, as the network would yield something else")
    except Exception as error:  # it asks for something that an identity has not
        logger.debug("BatchNorms are not folded, as the network cannot do without: %s", error)
    for restore in undo:
        restore()
    return 0


def pairs_by_data_flow(network: nn.Module) -> list[Pair]:
    """Convolutions whose output goes into one BatchNorm alone, with it; neither is called or read anywhere else.

    Raises:
        Exception: of any kind, when torch.fx cannot trace the network.
    """
    flow = DataFlow(network)
    pairs = []
    for node in flow.nodes:
        sources = node.all_input_nodes
        if len(sources) != 1 or len(sources[0].users) != 1:
            continue
        pair = _pair(flow.module(sources[0]), flow.module(node))
        if pair is not None and all(map(flow.once, pair)):
            pairs.append(pair)
    return pairs


def _pair(convolution: nn.Module | None, norm: nn.Module | None) -> Pair | None:
    """Both, where their types are these and no others that do more, and the BatchNorm uses what it has learnt."""
    if type(convolution) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
        return None
    usable = not convolution.training and not norm.training and norm.running_mean is not None
    return (convolution, norm) if usable else None


def _fold(network: nn.Module, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Callable[[], None]:
    """Fold a pair; what is returned undoes it."""
    weight, bias = convolution.weight, convolution.bias
    fused = fuse_conv_bn_eval(convolution, norm)
    convolution.weight, convolution.bias = fused.weight, fused.bias  # its hooks stay
    names = [name for name, module in network.named_modules(remove_duplicate=False) if module is norm]
    for name in names:
        _replace(network, name, nn.Identity().eval())

    def undo() -> None:
        convolution.weight, convolution.bias = weight, bias
        for name in names:
            _replace(network, name, norm)

    return undo


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, module)


def _random_image(network: nn.Module) -> Tensor:
    weights = next(network.parameters())
    generator = torch.Generator().manual_seed(0)  # the run's own is left alone
    return torch.randn(1, 3, EDGE, EDGE, generator=generator).to(weights)


def _seen(look: Look, images: Tensor) -> list[Tensor]:
    seen = look(images)
    return [one.clone() for one in ([seen] if isinstance(seen, Tensor) else seen)]


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())  # False for NaN

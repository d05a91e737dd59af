"""BatchNorm statistics, of which every rank has its own."""

from torch import nn

from moco.dist import broadcast


def share_norm_statistics(network: nn.Module) -> None:
    """Overwrite buffers (BatchNorm statistics) with those of rank 0, which are the ones that are saved."""
    for buffer in network.buffers():
        broadcast(buffer)

"""How a network's input is normalised, and networks that were trained with another mean and deviation than ours."""

from typing import Any, NamedTuple

import torch
from torch import nn

from mgd_ssl.config import DEVIATION, MEAN

Triple = tuple[float, float, float]
LIMIT = 10.0  # of a mean or a deviation; pixels are within 0 and 1


class Normalisation(NamedTuple):
    """A network sees (pixels / 255 - mean) / std, by channel."""

    mean: Triple = MEAN
    std: Triple = DEVIATION

    def __str__(self) -> str:
        return f"mean {' '.join(f'{m:g}' for m in self.mean)}, deviation {' '.join(f'{s:g}' for s in self.std)}"


USUAL = Normalisation()  # ImageNet's: what all batches of this program have
PIXELS = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # from 0 to 1, as SimCLR's networks see them


def normalisation_of(mean: Any, std: Any) -> Normalisation | None:
    """What a file says of itself, None unless these are three numbers each, the deviations above 0."""
    try:
        (m1, m2, m3), (s1, s2, s3) = ([float(value) for value in values] for values in (mean, std))
    except (TypeError, ValueError):
        return None
    found = Normalisation((m1, m2, m3), (s1, s2, s3))
    plain = all(abs(value) <= LIMIT for value in found.mean + found.std)
    return found if plain and min(found.std) > 0 else None


def take_input_of(network: nn.Module, own: Normalisation, given: Normalisation = USUAL) -> None:
    """Let a network take images that are normalised in another way than those it was trained on.

    A pre-hook scales and shifts the input, so that whoever calls the network (or a copy of it that shares its hooks)
    need not know. It is not folded into the first convolution: the border that pads an image is 0 after the
    normalisation, and would be another colour.

    Args:
        network: takes images [N, 3, H, W].
        own: of its training.
        given: of the images it will be called with.
    """
    if own == given:
        return
    own_mean, own_std, mean, std = (torch.tensor(v).view(3, 1, 1) for v in (*own, *given))
    network.register_buffer("input_scale", std / own_std, persistent=False)  # moves with the network
    network.register_buffer("input_shift", (mean - own_mean) / own_std, persistent=False)
    network.register_forward_pre_hook(_renormalise)


def _renormalise(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = inputs
    return (images * network.input_scale + network.input_shift, *others)

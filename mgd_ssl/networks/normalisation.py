"""How a network's input is normalised, and networks that were trained with another mean and deviation than ours."""

from typing import Any, NamedTuple

import torch
from torch import nn

from mgd_ssl.config import DEVIATION, MEAN

Triple = tuple[float, float, float]
LIMIT = 10.0  # of a mean or a deviation; pixels are within 0 and 1
USUAL_LEVEL = 0.45  # mean of photographs' pixels
EXPLAINED = 0.5  # share of a BatchNorm's means that an even input explains, from which on it tells of one
LEVELS = (("pixels from 0 to 1", 0.35, 0.6), ("pixels from 0 to 255", 80.0, 160.0))


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


def expected_level(network: nn.Module) -> float | None:
    """The mean of the input that a network's first BatchNorm has seen, None where it does not tell.

    The first convolution has no bias, so the mean of what it yields is that of its input, weighted by its kernels'
    sums: `running_mean` tells the input's level. Only the part that all three channels share is looked at.

    Args:
        network: trained; its first layer is a convolution of the three colours, then a BatchNorm.
    """
    convolution = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    norm = next((module for module in network.modules() if isinstance(module, nn.BatchNorm2d)), None)
    if convolution is None or norm is None or norm.running_mean is None:
        return None
    if convolution.in_channels != 3 or convolution.bias is not None or norm.num_features != convolution.out_channels:
        return None
    sums, means = convolution.weight.detach().sum(dim=(1, 2, 3)), norm.running_mean
    level = (sums @ means / (sums @ sums).clamp(min=1e-12)).item()
    explained = 1 - ((means - level * sums).square().sum() / means.square().sum().clamp(min=1e-12)).item()
    return level if explained > EXPLAINED else None


def doubted(level: float | None, own: Normalisation) -> str | None:
    """Why a normalisation may be a wrong one, None where nothing speaks against it.

    Args:
        level: of the input that the network expects, as `expected_level` found it.
        own: that its input is to be given.
    """
    if level is None:
        return None
    given = sum((USUAL_LEVEL - mean) / std for mean, std in zip(*own, strict=True)) / 3
    for name, low, high in LEVELS:
        if low <= level <= high and not low <= given <= high:
            return (
                f"seems to have been trained on input with a mean of {level:.2f}, as of {name}, and gets one of about "
                f"{given:.2f}: set teacher_mean and teacher_std, unless the images it was trained on were as bright"
            )
    return None

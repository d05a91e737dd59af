"""The two random views of MoCo v1 and v2: first drawn as a row of parameters, then rendered.

Drawing and rendering are apart so that every renderer consumes the same table and can be held against the one
here (PIL through torchvision's functional operations, as in the published code); the others are `augment_cpu` and
`augment_device`. Recipes: MoCo v2 as in https://arxiv.org/abs/2003.04297, v1 as in
https://arxiv.org/abs/1805.01978.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torchvision.transforms.v2.functional as TF
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode

from moco.keyed import keyed_generator

CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop: then the largest central crop
COLOUR_ORDERS = [
    (a, b, c, 6 - a - b - c) for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3
]  # the 24 orders of brightness 0, contrast 1, saturation 2, hue 3

Number = TypeVar("Number", float, Tensor)


class View(NamedTuple):
    """All that is random about one view; a row of 15 numbers (`np.asarray(view)`)."""

    left: float  # crop box in pixels of the image
    top: float
    width: float
    height: float
    flip: float  # 1: mirrored left to right
    brightness: float  # factors, 1 leaves the image as it is
    contrast: float
    saturation: float
    hue: float  # shift in turns, 0 leaves the image as it is
    first: float  # colour operations in the order they are applied: 0 brightness ... 3 hue
    second: float
    third: float
    fourth: float
    grey: float  # 1: to grey after the colour operations, 2: before them
    sigma: float  # of the blur in pixels of the view, 0: none


@dataclass(frozen=True)
class ViewPolicy:
    """Ranges and probabilities the parameters of a view are drawn from; the defaults are MoCo v2's.

    `brightness`, `contrast` and `saturation` are half-widths around 1, `hue` around 0, `scale` is a share of the
    image's area, `ratio` width / height, `blur_sigma` in pixels of the rendered view. With
    `grey_first` the conversion comes before the colour operations, so a grey view has neither saturation nor hue
    to change.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey_probability: float = 0.2
    grey_first: bool = False
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    @property
    def max_sigma(self) -> float:
        """Of the strongest blur a view can have."""
        return self.blur_sigma[1] if self.blur_probability > 0 else 0.0

    @classmethod
    def v1(cls) -> "ViewPolicy":
        """MoCo v1: grey before the jitter, jitter on every view with a hue shift of up to 0.4, and no blur."""
        return cls(jitter_probability=1.0, hue=0.4, grey_first=True, blur_probability=0.0)

    @classmethod
    def weak(cls) -> "ViewPolicy":
        """Crop and flip alone, as SimReg (https://arxiv.org/abs/2201.05131) and CompRess train with."""
        return cls(jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0)


class ViewKey(NamedTuple):
    """The address of a view, from which all that is random about it follows."""

    seed: int  # of the run
    epoch: int  # pass over the data, from 0
    image: int  # index in the data set
    view: int  # 0 for the query view, 1 for the key view


def draw_view(policy: ViewPolicy, width: int, height: int, key: ViewKey) -> View:
    """Parameters of one view of an image of `width` x `height` pixels, a function of the arguments alone."""
    return place_view(draw_unplaced(policy, key), policy, width, height)


class Unplaced(NamedTuple):
    """A view before its image is known: all but the crop box."""

    chances: list[float]  # uniform numbers for the box
    rest: tuple[float, ...]  # the columns of `View` from `flip` on


def draw_unplaced(policy: ViewPolicy, key: ViewKey) -> Unplaced:
    """`draw_view` up to where it needs the image's size; arguments as there.

    A batch draws these in one go: between two images to decode it would take several times as long, as the decoder
    drives all this code out of the cache.
    """
    uniforms = keyed_generator(key.seed, "view", *key[1:]).random(4 * CROP_ATTEMPTS + 10).tolist()
    flip, jitter, brightness, contrast, saturation, hue, order, grey, blur, sigma = uniforms[4 * CROP_ATTEMPTS :]

    jittered = jitter < policy.jitter_probability
    to_grey = grey < policy.grey_probability
    coloured = jittered and not (policy.grey_first and to_grey)
    low, high = policy.blur_sigma
    rest = (
        flip < policy.flip_probability,
        1 + policy.brightness * (2 * brightness - 1) if jittered else 1.0,
        1 + policy.contrast * (2 * contrast - 1) if jittered else 1.0,
        1 + policy.saturation * (2 * saturation - 1) if coloured else 1.0,
        policy.hue * (2 * hue - 1) if coloured else 0.0,
        *COLOUR_ORDERS[int(order * len(COLOUR_ORDERS))],
        to_grey * (2 if policy.grey_first else 1),
        low + (high - low) * sigma if blur < policy.blur_probability else 0.0,
    )
    return Unplaced(uniforms, rest)


def place_view(unplaced: Unplaced, policy: ViewPolicy, width: int, height: int) -> View:
    """`draw_view` from there on."""
    return View(*_crop_box(policy, width, height, unplaced.chances), *unplaced.rest)


def _crop_box(policy: ViewPolicy, width: int, height: int, uniforms: list[float]) -> tuple[int, int, int, int]:
    """Left, top, width, height as torchvision draws them: area, log aspect ratio, position; redrawn if too large."""
    log_ratio = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    for attempt in range(CROP_ATTEMPTS):
        area_draw, ratio_draw, x_draw, y_draw = uniforms[4 * attempt : 4 * attempt + 4]
        area = width * height * (policy.scale[0] + (policy.scale[1] - policy.scale[0]) * area_draw)
        ratio = math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * ratio_draw)
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(x_draw * (width - crop_width + 1)), int(y_draw * (height - crop_height + 1))
            return left, top, crop_width, crop_height
    # the largest central box whose aspect ratio is allowed
    ratio = min(max(width / height, policy.ratio[0]), policy.ratio[1])
    crop_width, crop_height = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def render_view(image: Image.Image, view: View, size: int) -> Image.Image:
    """Apply a view's parameters with PIL.

    Args:
        image: in mode RGB.
        view: as drawn by `draw_view` for this image's width and height.
        size: edge of the view in pixels.

    Returns:
        An RGB image of size x size pixels.
    """
    left, top, width, height = int(view.left), int(view.top), int(view.width), int(view.height)
    image = TF.resized_crop(image, top, left, height, width, [size, size], InterpolationMode.BILINEAR)
    if view.flip:  # commutes with everything below
        image = TF.horizontal_flip(image)
    if view.grey == 2:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    for operation in (view.first, view.second, view.third, view.fourth):
        image = _colour_operation(image, view, int(operation))
    if view.grey == 1:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    if view.sigma > 0:
        image = image.filter(ImageFilter.GaussianBlur(view.sigma))
    return image


def _colour_operation(image: Image.Image, view: View, operation: int) -> Image.Image:
    if operation == 0 and view.brightness != 1:
        return TF.adjust_brightness(image, view.brightness)
    if operation == 1 and view.contrast != 1:
        return TF.adjust_contrast(image, view.contrast)
    if operation == 2 and view.saturation != 1:
        return TF.adjust_saturation(image, view.saturation)
    if operation == 3 and view.hue != 0:
        return TF.adjust_hue(image, view.hue)
    return image


def box_radius(sigma: Number) -> Number:
    """Radius of the box that PIL, applying it three times, takes for a Gaussian.

    Equations 7, 11 and 14 of Gwosdek et al., Theoretical Foundations of Gaussian Convolution by Extended Box
    Filtering (SSVM 2011). The box has weight 1 up to the whole part of the radius and the fraction beyond it.
    """
    variance = sigma**2 / 3
    whole = ((12 * variance + 1) ** 0.5 - 1) / 2 // 1
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + fraction

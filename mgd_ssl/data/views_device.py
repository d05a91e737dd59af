"""The photometric part of `moco.augment`'s views for a whole batch at once, in plain torch: for the training device.

Every operation is done to every image, with parameters that make it nothing where a view has none, so shapes are
fixed, nothing waits for the device, and the compiler can fuse it. PIL's arithmetic on whole numbers is repeated.
"""

import torch
from torch import Tensor

from moco.augment import View, box_radius

GREY = (19595, 38470, 7471)  # PIL's weights, over 65536; their sums are exact in float32


def finish_views(pixels: Tensor, views: Tensor, max_sigma: float) -> Tensor:
    """Colour operations, grey and blur.

    Args:
        pixels: cropped, resized and flipped, [N, H, W, 3] uint8.
        views: rows of `View`, [N, 15] float32.
        max_sigma: of the strongest blur there can be, in pixels; 0: there is none.

    Returns:
        [N, H, W, 3] uint8.
    """
    view = {name: views[:, i].view(-1, 1, 1, 1) for i, name in enumerate(View._fields)}
    images = pixels.permute(0, 3, 1, 2)  # [N, 3, H, W], bytes between the operations: a quarter of what floats take
    images = _bytes(_made_grey(images.float(), view["grey"] == 2))
    for place in ("first", "second", "third", "fourth"):
        images = _bytes(_colour_operation(images.float(), view, view[place]))
    images = _bytes(_made_grey(images.float(), view["grey"] == 1))
    return _blur(images, view["sigma"], max_sigma).permute(0, 2, 3, 1).contiguous()


def _bytes(images: Tensor) -> Tensor:
    """Whole numbers from 0 to 255 as they are."""
    return images.to(torch.uint8)


def _made_grey(images: Tensor, which: Tensor) -> Tensor:
    return torch.where(which, _grey(images), images)


def _colour_operation(images: Tensor, view: dict[str, Tensor], operation: Tensor) -> Tensor:
    """One operation of each image, [N, 1, 1, 1]: 0 brightness, 1 contrast, 2 saturation, 3 hue."""
    grey = _grey(images)
    mean = (grey.mean(dim=(2, 3), keepdim=True) + 0.5).floor()
    base = torch.where(operation == 0, 0.0, torch.where(operation == 1, mean, grey))
    factor = torch.where(operation == 0, view["brightness"], view["saturation"])
    factor = torch.where(operation == 1, view["contrast"], factor)
    blended = (base + factor * (images - base)).clamp(0, 255).floor()
    turned = torch.where(view["hue"] == 0, images, _turn_hue(images, view["hue"]))
    return torch.where(operation == 3, turned, blended)


def _grey(images: Tensor) -> Tensor:
    """[N, 1, H, W]."""
    red, green, blue = images.split(1, dim=1)
    return ((GREY[0] * red + GREY[1] * green + GREY[2] * blue + 32768) / 65536).floor()


def _turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Through PIL's hue, saturation and value of 8 bits each."""
    value, smallest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - smallest
    red, green, blue = ((value - channel) / chroma.clamp(min=1) for channel in images.split(1, dim=1))
    sixths = torch.where(green == 0, 2 + red - blue, 4 + green - red)
    sixths = torch.where(red == 0, blue - green, sixths)
    hue = ((sixths / 6 + 1).remainder(1) * 255).floor()
    hue = torch.where(chroma == 0, 0.0, hue)
    saturation = (chroma / value.clamp(min=1) * 255).floor() / 255

    hue = (hue + (turns * 255).trunc()).remainder(256) * (6 / 255)
    # each channel falls off in other sixths of the circle: https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
    offsets = 5 - 2 * torch.arange(3, device=images.device).view(1, 3, 1, 1)
    distance = (hue + offsets).remainder(6)
    share = torch.minimum(distance, 4 - distance).clamp(0, 1)
    return (value * (1 - saturation * share) + 0.5).floor()


def _blur(images: Tensor, sigma: Tensor, max_sigma: float) -> Tensor:
    """Three passes of a box along rows, then along columns, each rounded, as PIL approximates a Gaussian: bytes in and
    out, the edge repeated beyond the image."""
    if max_sigma == 0:
        return images
    radius = box_radius(sigma)
    reach = int(box_radius(max_sigma)) + 1
    taps = [(radius + 1 - abs(offset)).clamp(0, 1) / (2 * radius + 1) for offset in range(-reach, reach + 1)]
    for dim in (3, 2):
        size = images.shape[dim]
        places = torch.arange(size, device=images.device)
        for _ in range(3):
            total = torch.zeros(images.shape, device=images.device)
            for offset, tap in zip(range(-reach, reach + 1), taps, strict=True):
                total = total + tap * images.index_select(dim, (places + offset).clamp(0, size - 1)).float()
            images = _bytes((total + 0.5).floor())
    return images

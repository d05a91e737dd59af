"""The photometric part of `moco.augment`'s views for a whole batch at once, in plain torch: for the training device.

Every operation is done to every image, with parameters that make it nothing where a view has none, so shapes are
fixed, nothing waits for the device, and the compiler can fuse it. PIL's arithmetic on whole numbers is repeated.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mgd_ssl.mgd.mgd import FEWEST_BYTES
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
    return Finishing(max_sigma)(pixels, views)


class Finishing:
    """The same, in parts that hand one another bytes.

    Between compiled parts a batch is written and read as bytes; in one piece the compiler would write it as floats, up
    to thirteen times as much.

    Args:
        max_sigma: of the strongest blur there can be, in pixels; 0: there is none.
        compiled: compile the parts.
        last: what is done to the finished [N, H, W, 3] uint8, as one with the blur.
    """

    def __init__(
        self, max_sigma: float, compiled: bool = False, last: Callable[[Tensor], Tensor] = lambda pixels: pixels
    ) -> None:
        def end(pixels: Tensor, views: Tensor) -> Tensor:
            return last(blurred(pixels, views, max_sigma))

        self.begin, self.operation, self.end = begun, colour_operation, end
        if compiled:
            self.begin, self.end = (torch.compile(part, dynamic=False) for part in (begun, end))
            self.operation = torch.compile(colour_operation, dynamic=False, options=FEWEST_BYTES)

    def __call__(self, pixels: Tensor, views: Tensor) -> Tensor:
        """See `finish_views`."""
        pixels = self.begin(pixels, views)
        for place in ("first", "second", "third", "fourth"):
            pixels = self.operation(pixels, views, views[:, View._fields.index(place)])
        return self.end(pixels, views)


def begun(pixels: Tensor, views: Tensor) -> Tensor:
    """Grey where it comes first: [N, H, W, 3] uint8, like all of these parts."""
    return _made_grey(pixels, _columns(views)["grey"] == 2)


def colour_operation(pixels: Tensor, views: Tensor, operation: Tensor) -> Tensor:
    """One operation of each image, [N]: 0 brightness, 1 contrast, 2 saturation, 3 hue."""
    images = pixels.permute(0, 3, 1, 2).float()  # [N, 3, H, W], whole numbers
    changed = _colour_operation(images, _columns(views), operation.view(-1, 1, 1, 1))
    return changed.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def blurred(pixels: Tensor, views: Tensor, max_sigma: float) -> Tensor:
    """Grey where it comes last, and the blur."""
    view = _columns(views)
    images = _made_grey(pixels, view["grey"] == 1).permute(0, 3, 1, 2)
    return _blur(images, view["sigma"], max_sigma).permute(0, 2, 3, 1).contiguous()


def _columns(views: Tensor) -> dict[str, Tensor]:
    """[N, 1, 1, 1] each."""
    return {name: views[:, i].view(-1, 1, 1, 1) for i, name in enumerate(View._fields)}


def _made_grey(pixels: Tensor, which: Tensor) -> Tensor:
    """[N, H, W, 3] uint8, grey where [N, 1, 1, 1] says so."""
    grey = _grey(pixels.permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1)
    return torch.where(which, grey.to(torch.uint8), pixels)


def _colour_operation(images: Tensor, view: dict[str, Tensor], operation: Tensor) -> Tensor:
    """The same for numbers [N, 3, H, W] and operations [N, 1, 1, 1]."""
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
            images = (total + 0.5).floor().to(torch.uint8)
    return images

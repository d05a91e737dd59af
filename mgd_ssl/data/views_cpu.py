"""The views of `moco.augment` made fast on a CPU core, from decoded pixels: torch resizes, OpenCV does the colours.

Held against `render_view` by tests; what differs is rounding, PIL's 8-bit hue and the rounding between the passes
of its blur.
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from moco.augment import View, box_radius

Pixels = NDArray[np.uint8]  # [H, W, 3]

GREY = np.array((0.299, 0.587, 0.114))
DOWN = -0.499  # OpenCV rounds where PIL cuts the fraction off
EDGE = cv2.BORDER_REPLICATE  # as PIL
FINE = 5.0  # pixels of blur up to which taps in steps of 1/256 will do, as OpenCV has them for 8 bits


def render_view_fast(pixels: Pixels, view: View, out: Pixels) -> None:
    """`render_view` on an array.

    Args:
        pixels: the image [H, W, 3].
        view: as drawn by `draw_view` for its width and height.
        out: where the view goes [size, size, 3].
    """
    cut_view(pixels, view, out)
    finish_view(out, view)


def cut_view(pixels: Pixels, view: View, out: Pixels) -> None:
    """The geometric part of a view, crop, resize and flip; arguments as in `render_view_fast`."""
    left, top, width, height = int(view.left), int(view.top), int(view.width), int(view.height)
    crop = pixels[top : top + height, left : left + width]
    # torch's kernel for 8 bits gives PIL's pixels to within one level. `interpolate` would call it too, but have it
    # write colour planes, and putting those together again takes half as long as the resize
    resize = torch.ops.aten._upsample_bilinear2d_aa.out
    resize(_channels_last(crop), out.shape[:2], align_corners=False, out=_channels_last(out))
    if view.flip:
        cv2.flip(out, 1, dst=out)


def _channels_last(pixels: Pixels) -> torch.Tensor:
    """The same memory as a batch of one, [1, 3, H, W]."""
    return torch.from_numpy(pixels[None]).permute(0, 3, 1, 2)


def finish_view(pixels: Pixels, view: View) -> None:
    """The photometric part of a view, colour operations, grey and blur, in place: memory in the cache stays there.

    Args:
        pixels: [size, size, 3], contiguous.
        view: its parameters.
    """
    if view.grey == 2:
        _to_grey(pixels)
    for operation in (view.first, view.second, view.third, view.fourth):
        _colour_operation(pixels, view, int(operation))
    if view.grey == 1:
        _to_grey(pixels)
    if view.sigma > 0:
        _blur(pixels, view.sigma)


def _colour_operation(pixels: Pixels, view: View, operation: int) -> None:
    if operation == 0 and view.brightness != 1:
        _scale(pixels, view.brightness, 0)
    elif operation == 1 and view.contrast != 1:
        mean = int(np.dot(cv2.mean(pixels)[:3], GREY) + 0.5)
        _scale(pixels, view.contrast, mean * (1 - view.contrast))
    elif operation == 2 and view.saturation != 1:
        matrix = np.empty((3, 4), np.float32)  # factor x pixel + (1 - factor) x its grey
        matrix[:, :3] = view.saturation * np.eye(3) + (1 - view.saturation) * GREY
        matrix[:, 3] = DOWN
        cv2.transform(pixels, matrix, dst=pixels)
    elif operation == 3 and view.hue != 0:
        _turn_hue(pixels, view.hue)


def _scale(pixels: Pixels, factor: float, offset: float) -> None:
    cv2.addWeighted(pixels, factor, pixels, 0, offset + DOWN, dst=pixels)


def _turn_hue(pixels: Pixels, turns: float) -> None:
    """Hue in 256 steps, moved by as many as PIL moves its own."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    row = np.zeros((pixels.shape[1], 3), np.uint8)
    row[:, 0] = int(turns * 255) % 256
    rows = hsv.reshape(len(hsv), -1)
    np.add(rows, row.reshape(-1), out=rows)  # wraps around, as hue does
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=pixels)


def _to_grey(pixels: Pixels) -> None:
    cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, dst=pixels)


def _blur(pixels: Pixels, sigma: float) -> None:
    """PIL's three box passes as one filter."""
    radius = box_radius(sigma)
    reach = int(radius) + 1
    box = np.clip(radius + 1 - np.abs(np.arange(-reach, reach + 1)), 0, 1) / (2 * radius + 1)
    kernel = np.convolve(np.convolve(box, box), box)
    if sigma > FINE:
        np.rint(cv2.sepFilter2D(pixels, cv2.CV_32F, kernel, kernel, borderType=EDGE), out=pixels, casting="unsafe")
        return
    kernel = kernel[kernel > 1 / 512]  # the rest is work for nothing
    kernel /= kernel.sum()
    cv2.sepFilter2D(pixels, -1, kernel, kernel, dst=pixels, borderType=EDGE)

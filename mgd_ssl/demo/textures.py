"""Small procedural image set for `mgd-ssl demo`: ImageNet-like folders of JPEG files.

Why the set is made this way.  MoCo-v2 learns what its augmentation leaves in place, and in a short run it
first learns whatever tells single images apart.  So a class here is one texture family: a local structure
(stripes, dots, bricks, ...) that survives crops, flips, jitter and grey.  What varies within a class is what
the augmentation destroys, so that an untrained encoder is misled by it and a trained one has no use for it:

* phase (random crops move it) and zoom (crops of 20 % to 100 % of the area zoom by up to 2.2);
* mean brightness and contrast (colour jitter), and a slight brightness field across the image;
* dark on bright or bright on dark: not destroyed, but at worst it cuts a class into two tight groups.

The images are grey on purpose: with a random colour for each image (or a random colour field across it) the
colour is the easiest way to tell images apart, the hue jitter of 0.1 does not hide it, and a short MoCo run
learns the colour instead of the texture: k-NN accuracy then falls below that of an untrained encoder.

Every image has a generator of its own, keyed by (seed, split, class, index): the set does not depend on the
order in which it is made, nor on how many images are asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating[Any]]
Texture = Callable[[Array, Array, np.random.Generator], Array]

SPLITS = ("train", "val")
JPEG_QUALITY = 92
PERIOD = 8.0  # pixels: the repeat length of the regular textures
ZOOM = (0.7, 1.4)
REFERENCE_SIZE = 48  # pixels of an image in which PERIOD is meant; larger images show the same, larger
FIELD_POINTS = 3  # random values on each axis of the brightness field
FIELD_SPREAD = 0.03
BRIGHTNESS_SPREAD = 0.15
CONTRAST = (0.15, 0.3)


def _shifted(x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Coordinates in periods, moved by a random phase."""
    shift = rng.random(2, dtype=np.float32)
    return x / PERIOD + shift[0] * 2, y / PERIOD + shift[1] * 2


def _unit(values: Array) -> Array:
    """Values cut to the range from 0 to 1."""
    cut: Array = np.clip(values, 0.0, 1.0)
    return cut


def _ink(distance: Array, half_width: float) -> Array:
    """1 where distance (in periods) is below half_width, 0 beyond, with an edge about a pixel wide."""
    return _unit((half_width - distance) * PERIOD + 0.5)


def _to_line(u: Array) -> Array:
    """Distance to the nearest whole number."""
    return np.abs(u - np.round(u))


def stripes(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Horizontal stripes."""
    _, v = _shifted(x, y, rng)
    return _ink(_to_line(v), 0.25)


def columns(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Vertical stripes."""
    u, _ = _shifted(x, y, rng)
    return _ink(_to_line(u), 0.25)


def diagonals(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Stripes at 45 degrees, leaning to either side (a flip changes the side)."""
    u, v = _shifted(x, y, rng)
    side = 1.0 if rng.random() < 0.5 else -1.0
    return _ink(_to_line((u + np.float32(side) * v) * np.float32(0.7)), 0.25)


def checks(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Chess board."""
    u, v = _shifted(x, y, rng)
    product = np.sin(np.pi * u) * np.sin(np.pi * v)
    return _unit(product * 4 + 0.5)


def dots(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Discs on a square lattice."""
    u, v = _shifted(x, y, rng)
    return _ink(np.hypot(_to_line(u), _to_line(v)), 0.3)


def rings(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Circle outlines on a wide square lattice."""
    u, v = _shifted(x, y, rng)
    radius = np.hypot(_to_line(u / 1.6), _to_line(v / 1.6)) * 1.6
    return _ink(np.abs(radius - 0.5), 0.12)


def crosses(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Plus signs that do not touch."""
    u, v = _shifted(x, y, rng)
    a, b = _to_line(u / 1.3) * 1.3, _to_line(v / 1.3) * 1.3
    return np.maximum(np.minimum(_ink(a, 0.13), _ink(b, 0.42)), np.minimum(_ink(b, 0.13), _ink(a, 0.42)))


def bricks(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Brick wall: joints of rows that are half a brick out of step."""
    u, v = _shifted(x, y, rng)
    u, v = u / 1.6, v / 0.8
    row = np.floor(v)
    across = _to_line(u + 0.5 * (row % 2)) * 1.6
    return np.maximum(_ink(_to_line(v) * 0.8, 0.09), _ink(across, 0.09))


def zigzag(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Horizontal zigzag lines."""
    u, v = _shifted(x, y, rng)
    return _ink(_to_line(v + 1.4 * _to_line(u / 1.4)), 0.25)


def grid(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Thin lines both ways."""
    u, v = _shifted(x, y, rng)
    return np.maximum(_ink(_to_line(u), 0.1), _ink(_to_line(v), 0.1))


def cells(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Borders of random cells (nearest and second nearest of random points)."""
    size = float(max(x.max(), y.max())) + 1
    per_side = max(2, round(size / (1.4 * PERIOD)) + 2)
    step = size / (per_side - 2)
    lattice = np.stack(np.meshgrid(np.arange(per_side), np.arange(per_side)), -1).reshape(-1, 2)
    points = ((lattice + rng.random(lattice.shape) - 0.75) * step).astype(np.float32)
    gaps = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1])
    nearest = np.partition(gaps, 1, axis=-1)
    return _ink((nearest[..., 1] - nearest[..., 0]) / PERIOD, 0.25)


def _smooth_noise(x: Array, cutoff: float, rng: np.random.Generator) -> Array:
    """Gaussian noise of zero mean and unit variance without frequencies far above cutoff."""
    shape = x.shape
    cutoff = cutoff * float(x[0, 1] - x[0, 0])
    spectrum = np.fft.rfft2(rng.standard_normal(shape))
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    noise = np.fft.irfft2(spectrum * np.exp(-((fx**2 + fy**2) / cutoff**2)), s=shape)
    scaled: Array = (noise - noise.mean()) / (noise.std() + 1e-9)
    return scaled


def blobs(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Smooth noise cut at its mean: winding patches."""
    return _unit(_smooth_noise(x, 0.09, rng) * 4 + 0.5)


def speckle(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Fine noise."""
    return _unit(_smooth_noise(x, 0.35, rng) * 2 + 0.5)


def rays(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Wedges around a point near the middle."""
    size = float(x.max()) + 1
    centre = size * (0.35 + 0.3 * rng.random(2))
    angle = np.arctan2(y - np.float32(centre[1]), x - np.float32(centre[0])).astype(np.float32)
    turn = np.float32(rng.random() * 2 * np.pi)
    return _unit(np.sin(12 * angle + turn) * 3 + 0.5)


def ripples(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Circles around a point near the middle."""
    size = float(x.max()) + 1
    centre = size * (0.35 + 0.3 * rng.random(2))
    radius = np.hypot(x - np.float32(centre[0]), y - np.float32(centre[1])).astype(np.float32)
    return _ink(_to_line(radius / PERIOD + np.float32(rng.random())), 0.25)


def confetti(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Squares switched on at random."""
    u, v = _shifted(x, y, rng)
    table: Array = (rng.random((64, 64)) < 0.5).astype(np.float32)
    squares: Array = table[np.floor(u * 1.5).astype(int) % 64, np.floor(v * 1.5).astype(int) % 64]
    return squares


TEXTURES: tuple[Texture, ...] = (
    stripes, columns, diagonals, checks, dots, rings, crosses, bricks,
    zigzag, grid, cells, blobs, speckle, rays, ripples, confetti,
)  # fmt: skip


def _field(size: int, rng: np.random.Generator) -> Array:
    """Smooth random field [size, size]: a few random values, linearly filled in."""
    values = rng.standard_normal((FIELD_POINTS, FIELD_POINTS))
    at = np.linspace(0, FIELD_POINTS - 1, size)
    hat = np.maximum(0.0, 1 - np.abs(at[:, None] - np.arange(FIELD_POINTS)))
    field: Array = hat @ values @ hat.T
    return field


def make_image(texture: Texture, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One RGB image (all grey): the texture with random zoom, contrast and brightness."""
    zoom = np.float32(np.exp(rng.uniform(*np.log(ZOOM))) * size / REFERENCE_SIZE)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / zoom
    ink = texture(x, y, rng) - np.float32(0.5)
    contrast = np.float32(rng.uniform(*CONTRAST) * (1 if rng.random() < 0.5 else -1))
    brightness = np.float32(0.5 + rng.uniform(-1, 1) * BRIGHTNESS_SPREAD)
    values = brightness + _field(size, rng) * np.float32(FIELD_SPREAD) + 2 * contrast * ink
    grey: NDArray[np.uint8] = np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)
    image: NDArray[np.uint8] = np.repeat(grey[..., None], 3, axis=-1)
    return image


@dataclass(frozen=True)
class ImageSet:
    """An image set, the same files for the same values.

    Raises:
        ValueError: for a number of classes there are no textures for.
    """

    seed: int = 0
    classes: int = 16  # texture families
    train_per_class: int = 150  # images
    val_per_class: int = 50  # images
    size: int = 48  # edge of an image in pixels

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= len(TEXTURES):
            raise ValueError(f"classes must be from 2 to {len(TEXTURES)}, got {self.classes}")

    def write(self, folder: Path) -> None:
        """Write train/<class>/*.jpg and val/<class>/*.jpg below a folder, which is made if missing."""
        for split, per_class in enumerate((self.train_per_class, self.val_per_class)):
            for label, texture in enumerate(TEXTURES[: self.classes]):
                place = folder / SPLITS[split] / texture.__name__
                place.mkdir(parents=True, exist_ok=True)
                for index in range(per_class):
                    rng = np.random.default_rng((self.seed, split, label, index))
                    image = Image.fromarray(make_image(texture, self.size, rng))
                    image.save(place / f"{index:05d}.jpg", quality=JPEG_QUALITY)

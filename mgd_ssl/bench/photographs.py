"""Made-up photographs, for measurements and tests that must not depend on anybody's images."""

import io

import numpy as np
from PIL import Image, ImageDraw


def photograph(seed: int, width: int = 500, height: int = 375) -> Image.Image:
    """An RGB image with what makes photographs hard to render faithfully: noise of all sizes (amplitude falling as
    one over the frequency), colour gradients, and shapes with hard edges."""
    rng = np.random.default_rng(seed)
    luminance, *tints = (_noise(rng, width, height) for _ in range(4))
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, width), np.linspace(-0.5, 0.5, height))
    planes = [
        rng.uniform(80, 170) + rng.uniform(-60, 60) * x + rng.uniform(-60, 60) * y + 35 * luminance + 12 * tint
        for tint in tints
    ]
    image = _as_image(np.stack(planes, axis=-1))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 9)):
        centre_x, centre_y = rng.uniform(0, width), rng.uniform(0, height)
        half_width, half_height = rng.uniform(0.02, 0.18, 2) * width
        box = (centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height)
        fill = tuple(rng.integers(0, 256, 3).tolist())
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=fill)
    grain = rng.normal(0, 4, (height, width, 3))
    return _as_image(np.asarray(image) + 10 * luminance[..., None] + grain)


def jpeg(image: Image.Image) -> bytes:
    """As a file of about the size photographs have: quality 92, colours at half the resolution."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, subsampling="4:2:0")
    return file.getvalue()


def _noise(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """[height, width] of deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    phase = np.exp(2j * np.pi * rng.random(frequency.shape))
    noise = np.fft.irfft2(phase * frequency ** -rng.uniform(1.0, 1.3), s=(height, width))
    return noise / noise.std()


def _as_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))

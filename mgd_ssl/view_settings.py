"""Settings of the views of an image: the range of a crop, and the local crops that a student sees beside its views."""

from typing import Annotated

from pydantic import AfterValidator, Field

from mgd_ssl.settings import AUTOMATIC, Settings


def _shares(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1] <= 1:
        raise ValueError("give a smaller and a larger share, above 0 and up to 1, as 0.2 1.0")
    return value


AreaShares = Annotated[tuple[float, float], AfterValidator(_shares)]  # a crop's least and largest share of an image


def local_size(image_size: int) -> int:
    """Edge in pixels of local crops beside views of a size: 96 beside 224, as DINO's, in steps of 16."""
    return max(16, round(image_size * 96 / 224 / 16) * 16)


class LocalCropSettings(Settings):
    """Small crops of every image."""

    local_crops: int = Field(0, ge=0, le=64)
    """Small crops of every image that the student sees too: seed, disco, simreg and compress draw each of them to what
    the teacher says of the query view (docs/terms.md)."""
    local_size: Annotated[int, AUTOMATIC] = Field(96, ge=16, le=2**13)
    """Edge of a local crop in pixels; not given: 96 of 224, in proportion to image_size, in steps of 16."""
    local_scale: AreaShares = (0.05, 0.4)
    """Range of a local crop's share of the image area, within 0 to 1 (as DINO's)."""

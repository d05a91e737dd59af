"""Settings of the demo."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from mgd_ssl.settings import Settings


class DemoConfig(Settings):
    """Make an image set, pretrain a teacher, then students without and with MGD, and print their k-NN table."""

    out: Path = Path("mgd_ssl_demo")
    """Folder for images and runs; the same command again continues, or prints the table of what is finished."""
    full: bool = False
    """Three seeds, a longer teacher, and students of two lengths: about an hour on two CPU cores."""
    seed: int = Field(0, ge=0, le=2**62)
    """Of the images and the runs; with --full the first of three."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """A GPU trains ResNet-50 -> ResNet-18, a CPU thin networks of the same block types."""

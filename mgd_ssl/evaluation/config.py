"""Settings of evaluations."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from mgd_ssl.config import MAX_SIZE, MAX_WORKERS, Background, MaxPixels, RuntimeConfig
from mgd_ssl.settings import MAX_SEED, Required, Settings, each_once


class EvaluationConfig(Settings):
    """What every evaluation of a frozen backbone asks for."""

    checkpoint: Annotated[Path, Required("--checkpoint, a run's folder or a file with a backbone")]
    """A run's folder (its encoder.pt, else its newest whole checkpoint), or a file with a backbone: ours, MoCo's,
    torchvision's, or timm's ResNets saved by torch.save (not safetensors); or random:resnet18 or random:resnet18:SEED,
    the untrained encoder a run of that seed begins with."""
    data: Annotated[Path, Required("--data, a folder with train/<class>/* and val/<class>/*")]
    """Folder with train/<class>/* and val/<class>/*, or with shards in train and val."""
    arch: str | None = None
    """Architecture of the backbone; None: told from the shapes in the file."""
    image_size: int | None = Field(None, ge=16, le=MAX_SIZE)
    """Edge of a crop in pixels; None: that of the run, 224 for a file."""
    workers: int | None = Field(None, ge=0, le=MAX_WORKERS)
    """Data processes for each process; None: 1 on a CPU, its share of the cores with a GPU."""
    max_unreadable: float = Field(0.01, ge=0, le=1)
    """Share of unreadable images above which there is no result."""
    background: Background | None = None
    """Behind transparent parts of images: white, black, #rrggbb, or in a file [r, g, b]; None: that of the run, white
    for a file."""
    max_pixels: MaxPixels | None = None
    """Images with more pixels are unreadable; None: as in the run, 100 million for a file."""
    runtime: RuntimeConfig = RuntimeConfig(precision="float32")


class KNNEvaluationConfig(EvaluationConfig):
    """Classify DATA/val by the nearest neighbours in DATA/train, by the frozen features of a backbone."""

    out: Path | None = None
    """Folder of the results, one evaluation_knn_*.json a row; None: that of the run, and for files that lie in no
    run's folder the table is only printed."""
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 10, 20, 100, 200), min_length=1)
    """Numbers of neighbours."""
    temperature: tuple[Annotated[float, Field(ge=1e-4, le=1e4)], ...] = Field((0.07,), min_length=1)
    """A neighbour votes with exp(similarity / temperature)."""
    few_label: bool = False
    """Also let 1 % and 10 % of each class vote (one image at least)."""
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field((0, 1, 2), min_length=1)
    """Each draws one few-label subset; the table shows mean and deviation."""
    batch_size: int = Field(64, ge=1, le=2**24)
    """Images in a forward pass."""

    @field_validator("k", "seeds")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return each_once(value)

    @field_validator("temperature")
    @classmethod
    def _each_has_its_file(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len({f"{temperature:g}" for temperature in value}) < len(value):
            raise ValueError("give values that differ within six digits, or their results would have one name")
        return value

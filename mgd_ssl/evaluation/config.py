"""Settings of evaluations."""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, field_validator

from mgd_ssl.config import MAX_SIZE, MAX_WORKERS, USUAL, Background, MaxPixels, RuntimeConfig
from mgd_ssl.settings import MAX_SEED, UNSET, Required, Settings, each_once


class EvaluationRuntimeConfig(RuntimeConfig):
    """Device and speed of an evaluation."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Autocast dtype; auto: bfloat16 on a GPU that has it natively."""


class EvaluationConfig(Settings):
    """What every evaluation of a frozen backbone asks for."""

    checkpoint: Annotated[Path, Required("--checkpoint, a run's folder or a file with a backbone")]
    """A run's folder (its encoder.pt, else its newest whole checkpoint), or a file or folder with a backbone of any
    origin (docs/teachers.md); or random:resnet18 or random:resnet18:SEED, the untrained encoder a run of that seed
    begins with."""
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
    runtime: EvaluationRuntimeConfig = EvaluationRuntimeConfig()


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


class EmbedConfig(EvaluationConfig):
    """Write the frozen features of all images of a source, in its order, with their names and labels.

    The same command again continues where it stopped, and searches what is there.
    """

    checkpoint: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN|FILE"),
        Required("a run's folder, or a file with weights"),
    ]
    """A run's folder (its encoder.pt, else its newest whole checkpoint), or a file with a backbone, or
    random:resnet18."""
    data: Annotated[Path, Required("--data, a folder of images or tar shards")]
    """Images: a folder, nested as you like, tar shards or a Hugging Face data set."""
    out: Annotated[Path, Required("--out, the file to write")]
    """File to write, told by its ending: .npy (names and labels beside it), .npz, .csv or .parquet."""
    layer: str | None = None
    """Name of a module whose output is taken (layer3, layer4.1.relu); None: the pooled features."""
    maps: bool = False
    """Keep the positions of a layer's maps, instead of their mean."""
    normalise: bool = False
    """Divide every feature vector by its norm."""
    batch_size: int = Field(64, ge=1, le=2**24)
    """Images in a forward pass."""
    search: Path | None = None
    """Image whose nearest ones are printed, by the cosine of their features."""
    nearest: int = Field(10, ge=1, le=2048)
    """How many of them."""

    @field_validator("out")
    @classmethod
    def _known_ending(cls, value: Path) -> Path:
        if value != UNSET and value.suffix not in (".npy", ".npz", ".csv", ".parquet"):
            raise ValueError("end it in .npy, .npz, .csv or .parquet")
        return value


class BagsConfig(Settings):
    """Find the nearest images of every image by a teacher's features, for the term bingo.

    The same command again continues where it stopped.
    """

    teacher: Annotated[Path, Required("--teacher, the checkpoint of the teacher")]
    """Checkpoint of the teacher, as of pretrain."""
    images: Annotated[Path, Required("--images, what is data.train of the run")]
    """Training images: a folder, shards or a Hugging Face data set, as data.train of the run."""
    out: Annotated[Path, Required("--out, the file of the bags")]
    """File that is written, whole; until then features and neighbours lie in a hidden folder beside it."""
    teacher_arch: str | None = None
    """Architecture of the teacher; None: told from the shapes in the file."""
    neighbours: int = Field(5, ge=1, le=1000)
    """Images in a bag beside the one it is of, as published."""
    image_size: int = Field(224, ge=16, le=MAX_SIZE)
    """Edge of the centre crops in pixels."""
    shard_images: int = Field(100_000, ge=1, le=2**26)
    """Images whose features a process holds in memory at once; 0.8 GB for a ResNet-50."""
    batch_size: int = Field(64, ge=1, le=2**24)
    """Images in a forward pass."""
    workers: int | None = Field(None, ge=0, le=MAX_WORKERS)
    """Data processes for each process; None: 1 on a CPU, its share of the cores with a GPU."""
    max_unreadable: float = Field(0.01, ge=0, le=1)
    """Share of unreadable images above which there are no bags."""
    background: Background = USUAL.background
    """Behind transparent parts of images: white, black, #rrggbb, or in a file [r, g, b]."""
    max_pixels: MaxPixels = USUAL.max_pixels
    """Images with more pixels are unreadable."""
    runtime: RuntimeConfig = RuntimeConfig()

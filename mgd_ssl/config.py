"""Settings of a run: frozen models, from defaults < TOML file < command line.

The line under a field is its documentation, in `--help` too.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
)
from pydantic_core import PydanticCustomError

from mgd_ssl.settings import Settings, each_once

PILLOWS_LIMIT = 178_956_970  # pixels; Pillow refuses more by itself


BYTES_A_PIXEL = 8  # of the deepest format: four channels of 16 bits


SPARE_BYTES = 2**24  # of a file for its metadata


@dataclass(frozen=True)
class Decoding:
    """How files become pixels."""

    background: str = "white"  # behind transparent parts: white, black or #rrggbb
    max_pixels: int = 100_000_000  # images with more of them are not decoded

    @property
    def max_bytes(self) -> int:
        """Of a file: as many as the largest image would have uncompressed."""
        return self.max_pixels * BYTES_A_PIXEL + SPARE_BYTES

    def told(self) -> str:
        """`, transparency on black`: for the protocol of a number; nothing for white."""
        return "" if self.background == USUAL.background else f", transparency on {self.background}"


USUAL = Decoding()


MAX_SIZE = 8192  # pixels of an edge: what still fits in memory
MAX_SEED = 2**63 - 1
MAX_SIGMA = 100  # pixels
MAX_WORKERS = 1024  # processes of one host, and threads of one process


def _colour(value: Any) -> str:
    """`white`, `black` or `#rrggbb`, one word for every colour, of what a user may write."""
    if isinstance(value, list | tuple) and all(type(level) is int and 0 <= level <= 255 for level in value):
        value = "#" + "".join(f"{level:02x}" for level in value)
    word = {"#ffffff": "white", "#000000": "black"}.get(str(value).lower(), str(value).lower())
    if word not in ("white", "black") and not re.fullmatch("#[0-9a-f]{6}", word):
        raise PydanticCustomError("colour", "pass white, black, #rrggbb or three levels from 0 to 255")
    return word


Background = Annotated[str, BeforeValidator(_colour)]
MaxPixels = Annotated[int, Field(ge=1, le=PILLOWS_LIMIT)]


class DataConfig(Settings):
    """Images and their views."""

    train: Path | None = None
    """Training images: a folder, nested as you like, tar shards or a Hugging Face data set (docs/data.md); labels are
    not used. Required."""
    image_size: int = Field(224, ge=16, le=MAX_SIZE)
    """Edge of a view in pixels."""
    recipe: Literal["v2", "v1"] = "v2"
    """Augmentation of MoCo v2 or v1."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Range of a crop's share of the image area, within 0 to 1."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur in pixels of the view (published for 224)."""
    backend: Literal["auto", "reference", "cpu", "device"] = "auto"
    """What renders the views: PIL (slow), the data workers (cpu), or the workers and for the colours the training
    device; auto: device on a GPU, else cpu. The views are the same up to rounding."""
    workers: int | None = Field(None, ge=0, le=MAX_WORKERS)
    """Data processes for each training process; None: 1 on a CPU, its share of the cores with a GPU. Results do
    not depend on it."""
    max_unreadable: float = Field(0.01, ge=0, le=1)
    """Share of unreadable images above which a run stops."""
    background: Background = USUAL.background
    """Behind transparent parts of images, those of k-NN too: white, black, #rrggbb, or in a file [r, g, b]."""
    max_pixels: MaxPixels = USUAL.max_pixels
    """Images with more pixels are unreadable; they are not decoded."""

    @field_validator("crop_scale")
    @classmethod
    def _crop_scale(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("give a smaller and a larger share, above 0 and up to 1, as 0.2 1.0")
        return value

    @field_validator("blur_sigma")
    @classmethod
    def _blur_sigma(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= MAX_SIGMA:
            raise ValueError(f"give a weaker and a stronger blur, from 0 up to {MAX_SIGMA} pixels, as 0.1 2.0")
        return value


class MoCoConfig(Settings):
    """Momentum contrast."""

    dim: int = Field(128, ge=1, le=2**16)
    """Size of the embedding."""
    queue_size: int = Field(65536, ge=1, le=2**26)
    """Negative keys; a multiple of the batch size."""
    momentum: float = Field(0.999, ge=0, lt=1)
    """EMA momentum of the key encoder."""
    temperature: float = Field(0.2, ge=1e-4, le=1e4)
    """Softmax temperature."""
    bn_splits: int = Field(1, ge=1)
    """Parts of each process's batch that BatchNorm looks at one by one, keys shuffled over them: 8 in one process are
    as 8 processes with a part each. With 1 in a single process BatchNorm is not shuffled at all."""
    head_width: int | None = Field(None, ge=1, le=2**16)
    """Hidden width of the projection head; None: that of the backbone, as published."""


StageWeight = Annotated[float, Field(ge=0, le=1e6)]


class MGDConfig(Settings):
    """Matching Guided Distillation; used when there is a teacher."""

    weight: float = Field(1e-4, ge=0, le=1e6)
    """Factor of the distillation loss, which is summed over elements and divided by the batch."""
    stage_weights: tuple[StageWeight, StageWeight, StageWeight, StageWeight] = (0.125, 0.25, 0.5, 1.0)
    """Factor of each of the four stages; 0 leaves one out."""
    reducer: Literal["amp", "max", "mean", "random_drop", "sparse"] = "amp"
    """How the teacher channels of a student channel become one."""
    margin: Literal["teacher", "measured", "initial"] = "teacher"
    """Margins from the teacher's BatchNorm, measured on images, or the constant the published program used."""
    matching_images: int = Field(20000, ge=1)
    """Training images a matching update looks at; the same ones at every update."""
    matching_epochs: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Matching is updated before training and after these epochs; no epoch at all (`[]` in a file, the flag without a
    value): before training only; None: the published ones, rescaled."""

    @field_validator("stage_weights")
    @classmethod
    def _some_stage(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not any(value):
            raise ValueError("give one stage a weight above 0, or set mgd.weight to 0")
        return value

    @field_validator("matching_epochs")
    @classmethod
    def _each_once(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return value if value is None else each_once(value)


class OptimConfig(Settings):
    """SGD and its schedule."""

    epochs: int = Field(200, ge=1, le=10**6)
    """Passes over the training images."""
    batch_size: int = Field(256, ge=2, le=2**24)
    """Images in a step over all processes."""
    lr: float = Field(0.03, gt=0, le=1e6)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(1e-4, ge=0, le=1e6)
    """Weight decay."""
    warmup_epochs: float = Field(3, ge=0, le=1e6)
    """Length of the linear warm-up from a thousandth of the peak."""
    lr_schedule: Literal["step", "epoch"] = "step"
    """Warm-up and cosine by step, or by epoch as published."""


class KNNConfig(Settings):
    """k-NN monitoring on labelled images: folders <class>/*, tar shards or Hugging Face data sets."""

    train: Path | None = None
    """Labelled images that vote."""
    val: Path | None = None
    """Labelled images that are classified."""
    every_epochs: int = Field(5, ge=1)
    """Distance between two evaluations; the first and the last state are always evaluated."""
    k: int = Field(20, ge=1)
    """Neighbours."""
    temperature: float = Field(0.07, ge=1e-4, le=1e4)
    """A neighbour votes with exp(similarity / temperature)."""
    max_bank: int = Field(100_000, ge=1)
    """Voting images at most, drawn evenly from the folder by the run's seed."""


class CheckpointConfig(Settings):
    """Saving."""

    every_steps: int = Field(1000, ge=1)
    """Steps between checkpoints; one is also written at the end of every epoch and on a signal."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept."""


class RuntimeConfig(Settings):
    """Device and speed."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU when there is one."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast dtype of training and k-NN; matching is in float32 always. float16 trains with a gradient scaler."""
    channels_last: bool = True
    """Memory format of images and weights."""
    compile: bool = False
    """Compile encoders and teacher with torch.compile."""
    threads: int | None = Field(None, ge=1, le=MAX_WORKERS)
    """CPU threads of each process; None: cores divided by processes."""
    log_every: int = Field(10, ge=1)
    """Steps between two rows of metrics.jsonl."""


class PretrainConfig(Settings):
    """Pretrain a student with MoCo v2, guided by a frozen teacher through MGD where one is given."""

    out: Path | None = None
    """Folder of the run; the same command again continues it. Required."""
    student: str = "resnet18"
    """Architecture to train: resnet18/34/50/101/152, resnext*, wide_resnet*, thin_resnet10/14."""
    teacher: Path | None = None
    """Checkpoint of the teacher (MoCo's, ours or its run folder, torchvision's); None: plain MoCo."""
    teacher_arch: str | None = None
    """Architecture of the teacher; None: told from the shapes in the file."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Of everything random in the run."""
    data: DataConfig = DataConfig()
    moco: MoCoConfig = MoCoConfig()
    mgd: MGDConfig = MGDConfig()
    optim: OptimConfig = OptimConfig()
    knn: KNNConfig = KNNConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    runtime: RuntimeConfig = RuntimeConfig()


MAX_SIDE = 65500  # pixels of a JPEG


class PackConfig(Settings):
    """Rewrite images once into tar shards of WebDataset's layout, which pretrain, knn and linear read like a folder."""

    images: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = None
    """Folder of images (or any other source of images). Required."""
    out: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = None
    """Folder of the shards; the same command again continues a pack that was stopped. Required."""
    short_side: int | None = Field(None, ge=1, le=MAX_SIDE)
    """Reduce larger images to this short side in pixels, as JPEG; None: copy all images as they are."""
    quality: int = Field(95, ge=1, le=100)
    """Of the JPEG, where an image is reduced."""
    shard_images: int = Field(4096, ge=1, le=2**31)
    """Images in a shard."""
    labels: Literal["auto", "yes", "no"] = "auto"
    """Write classes (first folder of the path) into .cls members; auto: when every image has one."""
    max_unreadable: float = Field(0.01, ge=0, le=1)
    """Share of images that may be left out because their format is unknown or they cannot be reduced."""
    background: Background = USUAL.background
    """Behind transparent parts of images that are reduced: white, black, #rrggbb, or in a file [r, g, b]."""
    max_pixels: MaxPixels = USUAL.max_pixels
    """Images with more pixels are left out."""
    workers: int | None = Field(None, ge=0, le=MAX_WORKERS)
    """Processes that read and reduce; None: one a core. The shards do not depend on it."""


class KNNEvaluationConfig(Settings):
    """Classify DATA/val by the nearest neighbours in DATA/train, by the frozen features of a backbone."""

    checkpoint: Path | None = None
    """A run's folder (its encoder.pt, else its newest whole checkpoint), or a file: MoCo's, ours, torchvision's; or
    random:resnet18 or random:resnet18:SEED, the untrained encoder a run of that seed begins with. Required."""
    data: Path | None = None
    """Folder with train/<class>/* (votes) and val/<class>/* (classified), or with shards in train and val. Required."""
    out: Path | None = None
    """Folder of the results, one evaluation_knn_*.json a row; None: that of the run, and for files that lie in no
    run's folder the table is only printed."""
    arch: str | None = None
    """Architecture of the backbone; None: told from the shapes in the file."""
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 10, 20, 100, 200), min_length=1)
    """Numbers of neighbours."""
    temperature: tuple[Annotated[float, Field(ge=1e-4, le=1e4)], ...] = Field((0.07,), min_length=1)
    """A neighbour votes with exp(similarity / temperature)."""
    few_label: bool = False
    """Also let 1 % and 10 % of each class vote (one image at least)."""
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field((0, 1, 2), min_length=1)
    """Each draws one few-label subset; the table shows mean and deviation."""
    image_size: int | None = Field(None, ge=16, le=MAX_SIZE)
    """Edge of the centre crop in pixels; None: that of the run, 224 for other files."""
    batch_size: int = Field(64, ge=1, le=2**24)
    """Images in a forward pass."""
    workers: int | None = Field(None, ge=0, le=MAX_WORKERS)
    """Data processes for each process; None: 1 on a CPU, its share of the cores with a GPU."""
    max_unreadable: float = Field(0.01, ge=0, le=1)
    """Share of unreadable images above which there is no result."""
    background: Background | None = None
    """Behind transparent parts of images: white, black, #rrggbb, or in a file [r, g, b]; None: that of the run, white
    for other files."""
    max_pixels: MaxPixels | None = None
    """Images with more pixels are unreadable; None: as in the run, 100 million for other files."""
    runtime: RuntimeConfig = RuntimeConfig()

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

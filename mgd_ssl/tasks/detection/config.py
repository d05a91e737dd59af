"""Settings of `mgd-ssl detect`."""

from pathlib import Path
from typing import Annotated, Literal, Self

import tyro
from pydantic import Field, field_validator, model_validator

from mgd_ssl.config import (
    MAX_SIZE,
    MAX_WORKERS,
    USUAL,
    Background,
    CheckpointConfig,
    Deviation,
    MaxPixels,
    Mean,
    RuntimeConfig,
    Sinks,
    StageWeight,
    check_input,
)
from mgd_ssl.settings import FREE, MAX_SEED, Required, Settings, each_once

Share = Annotated[float, Field(ge=0, lt=1)]  # of the length of a run
Side = Annotated[int, Field(ge=16, le=MAX_SIZE)]


class DetectionDataConfig(Settings):
    """Images and boxes in COCO's format."""

    root: Annotated[Path | None, FREE] = None
    """COCO as it unpacks: train2017/, val2017/, annotations/instances_train2017.json and instances_val2017.json."""
    train_images: Annotated[Path | None, FREE] = None
    """Folder of the training images, in place of the root's."""
    train_annotations: Annotated[Path | None, FREE] = None
    """Their JSON file, in place of the root's."""
    val_images: Annotated[Path | None, FREE] = None
    """Folder of the images to validate on, in place of the root's."""
    val_annotations: Annotated[Path | None, FREE] = None
    """Their JSON file, in place of the root's."""
    train_sides: tuple[Side, ...] = (640, 672, 704, 736, 768, 800)
    """Short sides in pixels one of which is drawn for every training image."""
    val_side: int = Field(800, ge=16, le=MAX_SIZE)
    """Short side of validation and matching images."""
    longest_side: int = Field(1333, ge=16, le=MAX_SIZE)
    """Images whose long side would be longer are reduced further."""
    workers: Annotated[int | None, FREE] = Field(None, ge=0, le=MAX_WORKERS)
    """Data processes for each training process; None: 1 on a CPU, its share of the cores with a GPU. Results do not
    depend on it."""
    max_unreadable: Annotated[float, FREE] = Field(0.01, ge=0, le=1)
    """Share of missing or unreadable training images above which a run stops."""
    background: Background = USUAL.background
    """Behind transparent parts of images: white, black, #rrggbb, or in a file [r, g, b]."""
    max_pixels: MaxPixels = USUAL.max_pixels
    """Images with more pixels are unreadable; they are not decoded."""

    @field_validator("train_sides")
    @classmethod
    def _some_side(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError("give one side or more, as 640 800")
        return each_once(value)


class NetworkConfig(Settings):
    """The detector."""

    kind: Literal["retinanet", "faster_rcnn"] = "retinanet"
    """RetinaNet, or Faster R-CNN for a transfer test; both on a feature pyramid."""
    norm: Literal["frozen", "group", "batch"] = "frozen"
    """Norms of the backbone: frozen BatchNorms as published (they need trained weights to begin with), GroupNorm(32),
    or BatchNorms that are trained, each process by its own images."""
    group_norm_last_blocks: bool = False
    """GroupNorm(32) in the last block of every stage, with weight and bias of the BatchNorms, as in the published
    guided student."""
    frozen_stages: int = Field(1, ge=0, le=4)
    """Stages of the backbone that are not trained: 1 the stem, 2 the first stage of blocks too, 0 none."""
    pyramid_channels: int = Field(256, ge=8, le=4096)
    """Channels of the feature pyramid and of the heads."""
    norm_heads: bool = False
    """GroupNorm(32) in RetinaNet's heads, with which a detector trained from nothing learns faster; not published."""
    loss_normaliser: Literal["ema", "image"] = "ema"
    """RetinaNet's losses are divided by a moving average of the anchors that hold an object, as in detectron2, or each
    image's by its own number, as in torchvision."""


class DetectionMGDConfig(Settings):
    """Matching Guided Distillation of the backbone; used when there is a teacher."""

    weight: float = Field(2.5e-9, ge=0, le=1e6)
    """Factor of the distillation loss, which is summed over elements and divided by the batch; 2.5e-9 with the
    stage_weights is as published for images of 800 pixels, whatever the number of processes."""
    stage_weights: tuple[StageWeight, StageWeight, StageWeight, StageWeight] = (1.0, 1.0, 10.0, 10.0)
    """Factor of each of the four stages; 0 leaves one out."""
    reducer: Literal["amp", "max", "mean", "random_drop", "random_drop_everywhere", "sparse"] = "amp"
    """How the teacher channels of a student channel become one."""
    margin: Literal["teacher", "measured", "initial"] = "teacher"
    """Margins from the teacher's BatchNorm, measured on images, or the constant of an untrained BatchNorm."""
    padding: Literal["include", "mask"] = "include"
    """Whether what is padded to the right of and below an image counts in costs and losses, as published."""
    matching_images: int = Field(2002, ge=1)
    """Training images a matching update looks at, as they are validated; the same ones at every update."""
    matching_at: tuple[Share, ...] = (0.0, 5 / 90, 10 / 90, 15 / 90, 31 / 90, 62 / 90)
    """Shares of the run after which the matching is updated; 0 is always among them."""

    @field_validator("matching_at")
    @classmethod
    def _each_once(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return each_once(value)

    @field_validator("stage_weights")
    @classmethod
    def _some_stage(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not any(value):
            raise ValueError("give one stage a weight above 0, or leave the teacher out")
        return value


class DetectionOptimConfig(Settings):
    """SGD and its schedule; where it says a share, it is one of the run's steps."""

    steps: int | None = Field(None, ge=1, le=10**9)
    """Length; None: as many passes over the images as the 1x schedule takes over COCO's (90,000 steps of 16)."""
    batch_size: int = Field(16, ge=1, le=2**20)
    """Images in a step over all processes."""
    lr: float = Field(0.01, gt=0, le=1e6)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's momentum, as published; needs a momentum above 0."""
    weight_decay: float = Field(1e-4, ge=0, le=1e6)
    """Weight decay; 0 on norms."""
    milestones: tuple[Share, ...] = (60 / 90, 80 / 90)
    """Shares from which on the learning rate is another tenth."""
    warmup: float = Field(1 / 90, ge=0, le=1)
    """Share of a linear warm-up from a thousandth of the peak."""

    @model_validator(mode="after")
    def _nesterov(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is true and momentum 0: set momentum above 0, or nesterov to false")
        return self


class DetectConfig(Settings):
    """Train a detector on data in COCO's format, its backbone guided by a frozen teacher through MGD where one is
    given; or evaluate one: mgd-ssl detect --evaluate RUN."""

    out: Annotated[Path, FREE, Required("--out, the folder this run may write to")]
    """Folder of the run; the same command again continues it."""
    student: str | None = None
    """Architecture of the backbone: resnet18 and on, thin_resnet10; None: that of the backbone's file, resnet18 without
    one."""
    backbone: Annotated[Path | None, FREE] = None
    """Checkpoint the backbone begins with: a self-supervised run, ImageNet weights, any file `pretrain` takes as a
    teacher; None: random weights."""
    teacher: Annotated[Path | None, FREE] = None
    """Checkpoint of the teacher: a detection run, torchvision's RetinaNet, detectron2's .pkl or .pth; None: no
    teacher."""
    teacher_arch: str | None = None
    """Architecture of the teacher's backbone; None: told from the shapes in the file."""
    teacher_mean: tuple[Mean, Mean, Mean] | None = None
    """Mean that the teacher's input has, pixels being from 0 to 1; None: as what is known of its file says."""
    teacher_std: tuple[Deviation, Deviation, Deviation] | None = None
    """Deviation likewise; both are given or none."""
    teacher_of_other_classes: bool = False
    """Take a teacher that detects other classes than there are in the data."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Of everything random in the run."""
    log: Sinks = ()
    """Services that get the numbers too, beside metrics.jsonl and TensorBoard's file (docs/running.md)."""
    evaluate_every: Annotated[int | None, FREE] = Field(None, ge=1)
    """Steps between two evaluations of average precision; None: at the end alone."""
    data: DetectionDataConfig = DetectionDataConfig()
    network: NetworkConfig = NetworkConfig()
    mgd: DetectionMGDConfig = DetectionMGDConfig()
    optim: DetectionOptimConfig = DetectionOptimConfig()
    checkpoint: Annotated[CheckpointConfig, FREE] = CheckpointConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _teachers_input(self) -> Self:
        check_input(self.teacher, self.teacher_mean, self.teacher_std)
        return self


class DetectEvaluationConfig(Settings):
    """Evaluate a detection run: COCO's twelve numbers, average precision of every class, and a page with boxes drawn on
    images."""

    evaluate: Annotated[Path, Required("--evaluate, the folder of a detection run"), tyro.conf.arg(metavar="RUN")]
    """Folder of a run of `mgd-ssl detect`."""
    images: Path | None = None
    """Folder of images; None: those the run is validated on."""
    annotations: Path | None = None
    """Their JSON file; None: that of the run."""
    out: Path | None = None
    """Folder of evaluation_detection_*.json and detection.html; None: the run's."""
    shown: int = Field(12, ge=0, le=1000)
    """Images that are drawn."""
    workers: int | None = Field(None, ge=0, le=MAX_WORKERS)
    """Data processes; None: 1 on a CPU, the cores with a GPU."""
    runtime: RuntimeConfig = RuntimeConfig()

"""Settings of `mgd-ssl classify`; what it shares with other runs is in config.py.

The line under a field is its documentation, in `--help` too.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mgd_ssl.config import (
    MAX_SIZE,
    MAX_WORKERS,
    USUAL,
    Background,
    CheckpointConfig,
    Deviation,
    MatchingConfig,
    MaxPixels,
    Mean,
    RuntimeConfig,
    Sinks,
    check_input,
)
from mgd_ssl.settings import FREE, MAX_SEED, Required, Settings
from mgd_ssl.view_settings import AreaShares


class LabelledDataConfig(Settings):
    """Labelled images: folders <class>/*, tar shards, Hugging Face data sets, CUB_200_2011/train and /val."""

    train: Annotated[Path, FREE, Required("--data.train, labelled images")]
    """Images to learn from."""
    val: Annotated[Path, FREE, Required("--data.val, labelled images of the same classes")]
    """Images to validate on after every epoch."""
    image_size: int = Field(224, ge=16, le=MAX_SIZE)
    """Edge of a crop in pixels."""
    crop_scale: AreaShares = (0.08, 1.0)
    """Range of a random crop's share of the image area, within 0 to 1."""
    share_of_labels: float = Field(1.0, gt=0, le=1)
    """Share of every class that is learnt from (one image at least): 0.01 and 0.1 for few labels."""
    workers: Annotated[int | None, FREE] = Field(None, ge=0, le=MAX_WORKERS)
    """Data processes for each training process; None: 1 on a CPU, its share of the cores with a GPU. Results do not
    depend on it."""
    max_unreadable: Annotated[float, FREE] = Field(0.01, ge=0, le=1)
    """Share of unreadable images above which a run stops."""
    background: Background = USUAL.background
    """Behind transparent parts of images: white, black, #rrggbb, or in a file [r, g, b]."""
    max_pixels: MaxPixels = USUAL.max_pixels
    """Images with more pixels are unreadable; they are not decoded."""


class GuidanceConfig(MatchingConfig):
    """Matching Guided Distillation of a classifier; used when there is a teacher. Weight 0 leaves it out."""

    matching_every: int = Field(1, ge=1)
    """Epochs between two matching updates, the first one before training; not used where matching_epochs are given."""
    matching_epochs: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Matching is updated before training and after these epochs; None: as matching_every says."""
    drop_remainder: bool = False
    """Where the teacher's channels are no multiple of the student's, leave the last ones out of the matching, as the
    published program did; else all compete."""
    margins_from: Annotated[Path | None, FREE] = None
    """Checkpoint whose BatchNorms the margins come from; None: the teacher's own. The published runs on CUB-200 took
    them from the ImageNet network their teacher was fine-tuned from."""


class KDConfig(Settings):
    """Distillation of logits; used when there is a teacher."""

    weight: float = Field(0.0, ge=0, le=1e6)
    """Factor of the loss beside the cross entropy (published: 1); 0 leaves it out."""
    temperature: float = Field(1.5, ge=1e-2, le=1e4)
    """By which both networks' logits are divided."""


class SupervisedOptimConfig(Settings):
    """SGD and its schedule."""

    epochs: int = Field(120, ge=1, le=10**6)
    """Passes over the training images."""
    batch_size: int = Field(256, ge=2, le=2**24)
    """Images in a step over all processes."""
    lr: float = Field(0.1, gt=0, le=1e6)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's momentum, as published; needs a momentum above 0."""
    weight_decay: float = Field(1e-4, ge=0, le=1e6)
    """Weight decay."""
    decay_norms: bool = True
    """Weight decay on norms and biases too, as published."""
    lr_schedule: Literal["milestones", "poly", "cosine"] = "milestones"
    """After the warm-up: a tenth at every milestone or a power, both by epoch, or a cosine by step."""
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = (31, 61, 81)
    """Epochs, counted from 0, from which on the learning rate is another lr_factor lower."""
    lr_factor: float = Field(0.1, gt=0, lt=1)
    """Factor at a milestone."""
    lr_power: float = Field(0.9, gt=0, le=100)
    """Power of poly."""
    warmup_epochs: int = Field(0, ge=0, le=10**6)
    """Epochs of a linear warm-up from a tenth of the peak."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of a label that is spread over all classes."""
    mixup: float = Field(0.0, ge=0, le=100)
    """Mix every image and label of a batch with another's, in a share drawn from Beta(mixup, mixup)
    (https://arxiv.org/abs/1710.09412); the teacher sees the mixed images too. 0: no mixing."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Momentum of an average of the weights, taken after every step; what is validated and left behind is then the
    average. 0: none."""

    @model_validator(mode="after")
    def _nesterov(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is true and momentum 0: set momentum above 0, or nesterov to false")
        return self


class ClassifyConfig(Settings):
    """Train or fine-tune a classifier on labelled images, guided by a frozen teacher through MGD and KD where one is
    given."""

    out: Annotated[Path, FREE, Required("--out, the folder this run may write to")]
    """Folder of the run; the same command again continues it."""
    student: str | None = None
    """Architecture to train: resnet18 and on, mobilenet_v2, shufflenet_v2_x1_0 and more of torchvision's, mobilenet_v1,
    timm.NAME; None: that of student_weights, resnet18 without them."""
    student_weights: Annotated[Path | None, FREE] = None
    """Checkpoint to begin with (MoCo's, ours or its run folder, torchvision's); None: random weights. Its classifier is
    kept where it has as many classes, else a new one is drawn."""
    teacher: Annotated[Path | None, FREE] = None
    """Checkpoint of the teacher, or a folder of a run or from the Hugging Face hub (docs/teachers.md); None: plain
    supervised training."""
    teacher_arch: str | None = None
    """Architecture of the teacher, of a ViT its name in timm; None: told from the shapes in the file."""
    teacher_mean: tuple[Mean, Mean, Mean] | None = None
    """Mean that the teacher's input has, pixels being from 0 to 1; None: as its files or what is known of them say."""
    teacher_std: tuple[Deviation, Deviation, Deviation] | None = None
    """Deviation likewise; both are given or none."""
    taps: tuple[str, ...] = ()
    """Modules of the student whose inputs are matched, as named_modules() calls them; none: the last ReLU of every
    stage."""
    teacher_taps: tuple[str, ...] = ()
    """Modules of the teacher, likewise. Where one network's are named, each takes the other's stage of the same size;
    where both are, the first is paired with the first."""
    num_classes: int | None = Field(None, ge=2, le=2**20)
    """Outputs of the classifier; None: as many as there are classes. 1000 keeps an ImageNet classifier on CUB-200, as
    in the published runs."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Of everything random in the run."""
    log: Sinks = ()
    """Services that get the numbers too, beside metrics.jsonl and TensorBoard's file (docs/running.md)."""
    data: LabelledDataConfig
    mgd: GuidanceConfig = GuidanceConfig()
    kd: KDConfig = KDConfig()
    optim: SupervisedOptimConfig = SupervisedOptimConfig()
    checkpoint: Annotated[CheckpointConfig, FREE] = CheckpointConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _teachers_input(self) -> Self:
        check_input(self.teacher, self.teacher_mean, self.teacher_std)
        return self

"""Settings of a run: frozen models, from defaults < TOML file < command line.

The line under a field is its documentation, in `--help` too.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mgd_ssl.settings import AUTOMATIC, FREE, MAX_SEED, Required, Settings, each_once
from mgd_ssl.term_settings import TermsConfig, WeightSettings
from mgd_ssl.view_settings import AreaShares, LocalCropSettings

MEAN = (0.485, 0.456, 0.406)  # of the pixels networks see: ImageNet's, as in MoCo
DEVIATION = (0.229, 0.224, 0.225)
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


class DataConfig(LocalCropSettings):
    """Images and their views."""

    train: Annotated[Path, FREE, Required("--data.train, a folder of images or tar shards")]
    """Training images: a folder, nested as you like, tar shards or a Hugging Face data set (docs/data.md); labels are
    not used."""
    image_size: Annotated[int, AUTOMATIC] = Field(224, ge=16, le=MAX_SIZE)
    """Edge of a view in pixels; not given: that of the images in steps of 16, from 64 to 224."""
    recipe: Literal["v2", "v1", "weak"] = "v2"
    """Augmentation of MoCo v2 or v1; weak: crop and flip alone, as SimReg and CompRess were published with."""
    crop_scale: AreaShares = (0.2, 1.0)
    """Range of a crop's share of the image area, within 0 to 1."""
    blur_sigma: Annotated[tuple[float, float], AUTOMATIC] = (0.1, 2.0)
    """Range of the blur in pixels of the view; not given: the published one of 224, in proportion to image_size."""
    backend: Annotated[Literal["auto", "reference", "cpu", "device"], FREE] = "auto"
    """What renders the views: PIL (slow), the data workers (cpu), or the workers and for the colours the training
    device; auto: device on a GPU, else cpu. The views are the same up to rounding."""
    workers: Annotated[int | None, FREE] = Field(None, ge=0, le=MAX_WORKERS)
    """Data processes for each training process; None: 1 on a CPU, its share of the cores with a GPU. Results do
    not depend on it."""
    max_unreadable: Annotated[float, FREE] = Field(0.01, ge=0, le=1)
    """Share of unreadable images above which a run stops."""
    background: Background = USUAL.background
    """Behind transparent parts of images, those of k-NN too: white, black, #rrggbb, or in a file [r, g, b]."""
    max_pixels: MaxPixels = USUAL.max_pixels
    """Images with more pixels are unreadable; they are not decoded."""

    @field_validator("blur_sigma")
    @classmethod
    def _blur_sigma(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= MAX_SIGMA:
            raise ValueError(f"give a weaker and a stronger blur, from 0 up to {MAX_SIGMA} pixels, as 0.1 2.0")
        return value


class MoCoConfig(Settings):
    """Momentum contrast."""

    weight: float = Field(1.0, ge=0, le=1e6)
    """Factor of the contrastive loss; at 0 there are neither key encoder nor queue, and a key view is drawn only for
    terms that want one."""
    dim: int = Field(128, ge=1, le=2**16)
    """Size of the embedding."""
    queue_size: Annotated[int, AUTOMATIC] = Field(65536, ge=1, le=2**26)
    """Negative keys; a multiple of the batch size. Not given: at most a quarter of the images."""
    momentum: Annotated[float, AUTOMATIC] = Field(0.999, ge=0, lt=1)
    """EMA momentum of the key encoder; not given: 0.99 in runs of less than 10,000 steps."""
    temperature: float = Field(0.2, ge=1e-4, le=1e4)
    """Softmax temperature."""
    bn_splits: int = Field(1, ge=1)
    """Parts of each process's batch that BatchNorm looks at one by one, keys shuffled over them: 8 in one process are
    as 8 processes with a part each. With 1 in a single process BatchNorm is not shuffled at all."""
    head_width: int | None = Field(None, ge=1, le=2**16)
    """Hidden width of the projection head; None: that of the backbone, as published."""


StageWeight = Annotated[float, Field(ge=0, le=1e6)]


class MatchingConfig(Settings):
    """Matching Guided Distillation; used when there is a teacher."""

    weight: float = Field(1e-4, ge=0, le=1e6)
    """Factor of the distillation loss, which is summed over elements and divided by the batch; 0 leaves it out."""
    stage_weights: tuple[StageWeight, StageWeight, StageWeight, StageWeight] = (0.125, 0.25, 0.5, 1.0)
    """Factor of each of the four stages; 0 leaves one out."""
    reducer: Literal["amp", "max", "mean", "random_drop", "random_drop_everywhere", "sparse"] = "amp"
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


class MGDConfig(MatchingConfig, WeightSettings):
    """Matching Guided Distillation; used when there is a teacher."""

    weight: Annotated[float, AUTOMATIC] = Field(1e-4, ge=0, le=1e6)
    """Factor of the distillation loss, which is summed over elements and divided by the batch; 0 leaves it out. Not
    given: the published one of a ResNet-18 at 224 pixels, times its elements over those of this student's maps."""


class OptimConfig(Settings):
    """SGD and its schedule."""

    epochs: Annotated[int, AUTOMATIC] = Field(200, ge=1, le=10**6)
    """Passes over the training images; not given: 200 on a GPU, and on a CPU as many as take an hour or so."""
    batch_size: Annotated[int, AUTOMATIC] = Field(256, ge=2, le=2**24)
    """Images in a step over all processes; not given: at most a twelfth of the images."""
    lr: float = Field(0.03, gt=0, le=1e6)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(1e-4, ge=0, le=1e6)
    """Weight decay."""
    warmup_epochs: Annotated[float, AUTOMATIC] = Field(3, ge=0, le=1e6)
    """Length of the linear warm-up from a thousandth of the peak; not given: at most a twentieth of the epochs."""
    lr_schedule: Literal["step", "epoch"] = "step"
    """Warm-up and cosine by step, or by epoch as published."""
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs from which on the learning rate is another lr_factor lower, in place of the cosine; none: the cosine."""
    lr_factor: float = Field(0.2, gt=0, lt=1)
    """Factor at a milestone."""


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

    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], FREE] = "auto"
    """auto: a GPU of NVIDIA or AMD when there is one, else the CPU. mps, Apple's GPU, is taken when it is asked for."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast dtype of training and k-NN; matching is in float32 always. float16 trains with a gradient scaler.
    auto: as the run began; a new one in bfloat16 on a GPU that has it natively, else in float32."""
    channels_last: bool = True
    """Memory format of images and weights."""
    compile: Annotated[bool | None, FREE] = None
    """Compile encoders, teacher and the distillation loss with torch.compile; None: on a GPU where triton and a C
    compiler are there, if the run has a thousand steps or more."""
    deterministic: Annotated[bool, FREE] = False
    """On a GPU choose kernels that give the same bits every time, which costs speed; a CPU does so anyway."""
    threads: Annotated[int | None, FREE] = Field(None, ge=1, le=MAX_WORKERS)
    """CPU threads of each process; None: cores divided by processes."""
    log_every: Annotated[int, FREE] = Field(10, ge=1)
    """Steps between two rows of metrics.jsonl."""


Sinks = Annotated[tuple[Literal["wandb", "mlflow", "trackio"], ...], AfterValidator(each_once), FREE]
Mean = Annotated[float, Field(ge=-10, le=10)]
Deviation = Annotated[float, Field(gt=0, le=10)]


def check_input(teacher: Path | None, mean: Any, std: Any) -> None:
    """Raise ValueError where an input is given in part, or of no teacher."""
    if (mean is None) != (std is None):
        raise ValueError("teacher_mean and teacher_std belong together: give both or none")
    if mean is not None and teacher is None:
        raise ValueError("teacher_mean and teacher_std are those of a teacher: give one, or leave them out")


class PretrainConfig(Settings):
    """Pretrain a student with MoCo v2, guided by a frozen teacher through MGD and other terms where one is given.

    --more-epochs N RUN goes on with a finished run: its settings and last weights, a new schedule of N epochs, the
    next seed, and a folder of its own (--out).
    """

    out: Annotated[Path, FREE, Required("--out, the folder this run may write to")]
    """Folder of the run; the same command again continues it."""
    student: str = "resnet18"
    """Architecture to train, by name: resnet18/34/50/101/152, thin_resnet10/14, mobilenet_*, efficientnet_*, regnet_*,
    shufflenet_* and more of torchvision's; timm.NAME for a CNN of timm."""
    student_weights: Annotated[Path | None, FREE] = None
    """Checkpoint to begin with, of any kind that a teacher may have (docs/teachers.md); None: random weights. MoCo's
    projection head is kept where it has the same sizes, else a new one is drawn."""
    teacher: Annotated[Path | None, FREE] = None
    """Checkpoint of the teacher, or a folder of a run or from the Hugging Face hub (docs/teachers.md); None: plain
    MoCo."""
    teacher_arch: str | None = None
    """Architecture of the teacher, of a ViT its name in timm; None: told from the shapes in the file."""
    teacher_precision: Literal["auto", "float32", "bfloat16", "int8"] = "float32"
    """Of the teacher in a training step, if that of the training is float32; matching and k-NN see it in float32. auto:
    as the run began; a new one in bfloat16 on a processor that has it natively, where it takes half the time. int8,
    on a CPU: a teacher's convolutions in 8 bits, calibrated on 256 training images, and never compiled."""
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
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Of everything random in the run."""
    log: Sinks = ()
    """Services that get the numbers too, beside metrics.jsonl and TensorBoard's file (docs/running.md)."""
    data: DataConfig
    moco: MoCoConfig = MoCoConfig()
    mgd: MGDConfig = MGDConfig()
    terms: TermsConfig = TermsConfig()
    optim: OptimConfig = OptimConfig()
    knn: Annotated[KNNConfig, FREE] = KNNConfig()
    checkpoint: Annotated[CheckpointConfig, FREE] = CheckpointConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _teachers_input(self) -> Self:
        check_input(self.teacher, self.teacher_mean, self.teacher_std)
        return self

"""Settings of the benchmark."""

from typing import Literal

from pydantic import Field

from mgd_ssl.config import MAX_SIZE, RuntimeConfig
from mgd_ssl.settings import Settings


class StepConfig(Settings):
    """A training step, and how often it is timed."""

    task: Literal["pretrain", "classify"] = "pretrain"
    """Whose step: `mgd-ssl pretrain`'s, or that of `mgd-ssl classify` with MGD."""
    student: str = "resnet18"
    """Architecture that is trained."""
    teacher: str = "resnet50"
    """Architecture that teaches; its weights are random here."""
    teacher_precision: Literal["auto", "float32", "bfloat16", "int8"] = "float32"
    """Of the teacher in the step; the bare networks stay as `runtime.precision` says."""
    image_size: int = Field(64, ge=32, le=MAX_SIZE)
    """Edge of an image in pixels."""
    batch_size: int = Field(32, ge=2, le=2**24)
    """Images in a step."""
    queue_size: int = Field(65536, ge=2, le=2**26)
    """Negative keys; a multiple of the batch size."""
    terms: tuple[Literal["mgd", "seed", "disco", "simreg", "compress", "bingo"], ...] = Field(("mgd",), min_length=1)
    """What the teacher says; the queues of seed, compress and bingo are the settings' own."""
    local_crops: int = Field(0, ge=0, le=64)
    """Local crops of every image beside its views, of 96 to 224 of their size, for seed, disco, simreg and compress."""
    contrast: bool = True
    """Contrast queries with keys; without, the terms are alone."""
    rounds: int = Field(10, ge=1, le=10**6)
    """Rounds counted; in each, what is compared runs one after the other."""
    warmup: int = Field(2, ge=1, le=10**6)
    """Rounds not counted."""
    runtime: RuntimeConfig = RuntimeConfig(threads=1)


class BenchConfig(StepConfig):
    """Measure a training step, the bare networks in it, the matching solver, and what the views cost a core."""

    views: bool = True
    """Also measure MoCo's views, and say how many cores it takes to feed its step."""
    memory: bool = True
    """Also measure the peak memory of step and bare networks, in processes of their own."""
    only: Literal["views", "gpu"] | None = None
    """views: measure nothing else, within a minute. gpu: the checks a GPU has to pass before its numbers count,
    in under ten minutes."""

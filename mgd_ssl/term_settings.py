"""Settings of the terms by which a teacher guides a student, and of how their weights change over a run."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mgd_ssl.settings import AUTOMATIC, FREE, Settings


class WeightSettings(Settings):
    """The weight of a term over a run."""

    weight: float = Field(0.0, ge=0, le=1e6)
    """Factor of the term; 0 leaves it out."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the factor goes from the weight down to final_share of it, by step."""
    final_share: float = Field(0.0, ge=0, le=1)
    """Share of the weight that is left at until_epoch; not used where the schedule is constant."""
    from_epoch: float = Field(0.0, ge=0, le=1e6)
    """Epochs before the term sets in."""
    until_epoch: float | None = Field(None, gt=0, le=1e6)
    """Epochs after which it rests; None: it acts to the end."""
    balance: float | None = Field(None, gt=0, le=1e4)
    """Share of the contrastive loss's gradient that the term's is held to, whatever its weight, before the schedule;
    measured every terms.measure_every steps. None: the weight as it is."""

    @model_validator(mode="after")
    def _some_time(self) -> Self:
        if self.until_epoch is not None and self.until_epoch <= self.from_epoch:
            raise ValueError(
                f"until_epoch is {self.until_epoch:g} and from_epoch {self.from_epoch:g}: let it end after it begins"
            )
        return self


class SeedConfig(WeightSettings):
    """SEED: the student's similarities to past teacher embeddings become the teacher's; wants a teacher with a head."""

    queue_size: Annotated[int, AUTOMATIC] = Field(65536, ge=1, le=2**26)
    """Embeddings of earlier images; a multiple of the batch size. Not given: at most a quarter of the images."""
    student_temperature: float = Field(0.2, ge=1e-4, le=1e4)
    """Softmax temperature of the student."""
    teacher_temperature: float = Field(0.01, ge=1e-5, le=1e4)
    """Softmax temperature of the teacher, as in the paper; 1e-4 in the published code."""


class DisCoConfig(WeightSettings):
    """DisCo: squared distance of embeddings, a mean over images (published: weight 32); wants a teacher with a head."""

    both_views: bool = True
    """Of query and key view, as published; else of the query alone, which spares both networks a pass."""


class SimRegConfig(WeightSettings):
    """SimReg: a head predicts the teacher's feature; any backbone can teach (published: weight 1)."""

    layers: Literal[1, 2, 4] = 4
    """Linear layers of the head; 4 with BatchNorm and ReLU between them, as published."""


class CompRessConfig(WeightSettings):
    """CompRess with one queue: the student stands to past images as the teacher does; any backbone can teach."""

    queue_size: Annotated[int, AUTOMATIC] = Field(16384, ge=1, le=2**26)
    """Features of earlier images; a multiple of the batch size (published: 128,000, 1 GB for a ResNet-50). Not given:
    at most a quarter of the images."""
    temperature: float = Field(0.04, ge=1e-4, le=1e4)
    """Softmax temperature of both networks."""


class BingoConfig(WeightSettings):
    """BINGO: images of a bag are contrasted together; wants a teacher with a head, and bags."""

    bags: Annotated[Path | None, FREE] = None
    """File that `mgd-ssl bags` made of the same images."""
    queue_size: Annotated[int, AUTOMATIC] = Field(65536, ge=1, le=2**26)
    """Embeddings of earlier images; a multiple of the batch size. Not given: at most a quarter of the images."""
    temperature: float = Field(0.2, ge=1e-4, le=1e4)
    """Softmax temperature."""
    warm_epochs: float = Field(11, ge=0, le=1e6)
    """Epochs in which an image is compared with its own embedding alone; later with both of its bag."""


class TermsConfig(Settings):
    """Terms on embeddings and features, beside MGD; used when there is a teacher."""

    seed: SeedConfig = SeedConfig()
    disco: DisCoConfig = DisCoConfig()
    simreg: SimRegConfig = SimRegConfig()
    compress: CompRessConfig = CompRessConfig()
    bingo: BingoConfig = BingoConfig()
    measure_every: int = Field(100, ge=1)
    """Steps between two rows on how evenly embeddings and features spread, and on the gradient of every term."""

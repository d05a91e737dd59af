"""Settings of `mgd-ssl doctor`: those of a pretraining."""

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from mgd_ssl.config import PretrainConfig
from mgd_ssl.setting_keys import given_keys, with_given
from mgd_ssl.settings import FREE

HERE = Path(".")


class DoctorConfig(PretrainConfig):
    """Look at machine, images and teacher, take a few real steps, and say how long the run would take and what to
    change first. Takes what `mgd-ssl pretrain` takes; without anything it looks at the machine alone.
    Nothing is kept."""

    out: Annotated[Path, FREE] = HERE
    """Folder the run would write to; its disk is looked at."""
    steps: int = Field(20, ge=3, le=10_000)
    """Steps that are taken and timed."""
    sample: int = Field(200, ge=1, le=10**6)
    """Images that are decoded."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object instead of the page."""

    def pretraining(self, out: Path) -> PretrainConfig:
        """The settings of the run itself, in another folder."""
        own = set(DoctorConfig.model_fields) - set(PretrainConfig.model_fields)
        return with_given(PretrainConfig(**self.model_dump(exclude=own) | {"out": out}), given_keys(self))

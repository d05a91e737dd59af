"""Settings of `mgd-ssl export`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from mgd_ssl.config import MAX_SIZE
from mgd_ssl.settings import Required, Settings

Format = Literal["torchvision", "timm", "safetensors", "onnx", "detectron2", "huggingface"]


class ExportConfig(Settings):
    """Write a trained network in the format of another library, load it back with that library, and compare both on the
    same images. What differs by more than the tolerance is not kept."""

    source: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN|FILE"),
        Required("a run's folder, or a file with weights"),
    ]
    """A run's folder (its encoder.pt, else its newest whole checkpoint), or a file with a network's weights."""
    format: Format = "safetensors"
    """torchvision: a state dict (torch.save). timm: a state dict with timm's keys (safetensors). safetensors: our keys,
    which are torchvision's, and metadata. onnx: a graph for any number of images. detectron2: a backbone of ResNets.
    huggingface: a folder with config.json, model.safetensors and a model card, for timm and transformers."""
    out: Annotated[Path, Required("--out, the file or folder to write")]
    """File to write, for huggingface a folder; nothing may be there yet."""
    arch: str | None = None
    """Architecture of the network; None: told from the shapes in the file."""
    classifier: bool = True
    """Keep the classifier where the file has one; without it a network returns its pooled features."""
    image_size: int | None = Field(None, ge=16, le=MAX_SIZE)
    """Edge of the images in pixels; None: that of the run, 224 for a file."""
    tolerance: float = Field(1e-4, gt=0, le=1)
    """Largest difference that is accepted, as a share of the largest output."""
    opset: int = Field(18, ge=18, le=23)
    """onnx: version of the operators."""
    normalise: bool = False
    """onnx: take images with values from 0 to 1 and normalise them inside the graph."""
    licence: str | None = Field(None, pattern=r"^[A-Za-z0-9.\-+]+$", max_length=40)
    """huggingface: licence of the network for its model card, by its short name (mit, apache-2.0); None: not said."""
    teacher_licence: str | None = Field(None, max_length=200)
    """Licence of the teacher's weights, for metadata and model card; None: as `mgd-ssl teachers` knows it, else
    not said."""
    push: str | None = Field(None, pattern=r"^[\w.\-]+(/[\w.\-]+)?$", max_length=96)
    """huggingface: upload the folder to this repository (OWNER/NAME) by huggingface_hub, with the token it knows."""

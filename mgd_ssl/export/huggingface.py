"""A repository of the Hugging Face hub as a folder: `config.json`, `model.safetensors` and a model card.

The layout is timm's (https://huggingface.co/docs/timm/hub), which transformers reads too.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgd_ssl.export import timm
from mgd_ssl.export.card import model_card
from mgd_ssl.export.config import ExportConfig
from mgd_ssl.export.student import Network, Student

CROP = 224 / 256  # share of the short side that an evaluation keeps


def carries(student: Student) -> bool:
    """Whether timm has this network, through which transformers runs it."""
    return timm.carries(student)


def write(student: Student, path: Path, config: ExportConfig) -> None:
    """Write the folder."""
    path.mkdir()
    timm.write(student, path / "model.safetensors", config)
    (path / "config.json").write_text(json.dumps(description(student), indent=2) + "\n")
    (path / "README.md").write_text(model_card(student, config), encoding="utf-8")


def description(student: Student) -> dict[str, Any]:
    """What timm and transformers read of a network: which it is, and what it expects."""
    twin, size = timm.TWINS[student.arch], student.image_size
    expected = {
        "input_size": [3, size, size], "mean": student.normalisation.mean,
        "std": student.normalisation.std, "interpolation": "bilinear", "crop_pct": CROP,
        "num_classes": student.classes or 0,
    }  # fmt: skip
    return {
        "architecture": twin.name,
        "num_classes": student.classes or 0,
        "global_pool": "avg",
        "model_args": twin.settings,
        "pretrained_cfg": expected,
    }


def read(student: Student, path: Path, config: ExportConfig) -> Network:
    """The folder as timm and transformers load it; whatever differs more from the student is returned."""
    import timm as library
    import transformers

    transformers.utils.logging.disable_progress_bar()
    by_timm = library.create_model(f"local-dir:{path}", pretrained=True).eval()
    kind = transformers.AutoModel if student.classes is None else transformers.AutoModelForImageClassification
    by_transformers = kind.from_pretrained(path, local_files_only=True).eval()

    def network(images: Tensor) -> Tensor:
        returned = by_transformers(pixel_values=images)
        second = returned.pooler_output if student.classes is None else returned.logits
        first, expected = by_timm(images), student.network(images)
        farther = max((first, second.flatten(1)), key=lambda each: float((each - expected).abs().max()))
        return torch.as_tensor(farther)

    return network


def usage(student: Student, path: Path) -> str:
    """Python that loads it."""
    kind = "AutoModel" if student.classes is None else "AutoModelForImageClassification"
    return (
        f'model = timm.create_model("local-dir:{path}", pretrained=True)\n'
        f"model = transformers.{kind}.from_pretrained({str(path)!r})"
    )

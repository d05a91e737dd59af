"""The network that is exported, and all that is known of where it comes from."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgd_ssl.errors import UserError
from mgd_ssl.export.config import ExportConfig
from mgd_ssl.files import read_json
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import BACKBONES, build_backbone, family_of, set_head
from mgd_ssl.networks.known import recognise
from mgd_ssl.networks.normalisation import USUAL, Normalisation
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.run.environment import environment
from mgd_ssl.run.folder import find_weights, run_image_size, run_of, unfinished
from mgd_ssl.run.log import logger
from mgd_ssl.run.result import Evaluation

Network = Callable[[Tensor], Tensor]  # normalised images [N, 3, H, W] -> features or logits


@dataclass(frozen=True)
class Student:
    """A trained network in eval mode, with or without its classifier."""

    network: nn.Module  # images [N, 3, H, W] -> logits [N, classes], or features [N, d] without a classifier
    report: LoadReport
    image_size: int
    origin: dict[str, Any]  # config.json of its run, empty for a file
    result: dict[str, Any]  # result.json of its run, empty until it is finished
    evaluations: list[Evaluation]
    teacher_licence: str | None

    @property
    def arch(self) -> str:
        """Key of `BACKBONES`."""
        return self.report.arch

    @property
    def classes(self) -> int | None:
        """Of its classifier, None without one."""
        return self.report.classes

    @property
    def normalisation(self) -> Normalisation:
        """Of the images it takes."""
        return self.report.normalisation

    @property
    def head(self) -> str:
        """Name of the classifier in the network."""
        return family_of(self.network).classifier

    @property
    def weights(self) -> dict[str, Tensor]:
        """By the network's own names, which are torchvision's."""
        return {name: value.detach().contiguous() for name, value in self.network.state_dict().items()}

    @property
    def teacher(self) -> dict[str, Any] | None:
        """Architecture and hashes of its teacher, None when there was none."""
        return self.origin.get("teacher")

    def metadata(self) -> dict[str, str]:
        """Where it comes from and what it expects, in words."""
        teacher, environ = self.teacher or {}, environment()
        told = {
            "format": "pt",  # what readers of safetensors expect
            "arch": self.arch,
            "classes": self.classes,
            "image_size": self.image_size,
            "mean": json.dumps(self.normalisation.mean),
            "std": json.dumps(self.normalisation.std),
            "source": self.report.path.name,
            "source_sha256": self.report.sha256,
            "run": self.report.path.resolve().parent.name if self.origin else None,
            "commit": self.origin.get("environment", {}).get("git"),
            "recipe": json.dumps(self.origin["config"]) if "config" in self.origin else None,
            "teacher_arch": teacher.get("arch"),
            "teacher_sha256": teacher.get("sha256"),
            "teacher_licence": self.teacher_licence,
            "exported_by": f"mgd_ssl {environ['mgd_ssl']}",
        }
        return {name: str(value) for name, value in told.items() if value is not None}


def load_student(config: ExportConfig) -> Student:
    """The network of a run or a file, with what lies beside it.

    Raises:
        UserError: as `find_weights` and `load_backbone`, and when the run's files are damaged.
    """
    path = find_weights(config.source)
    network, report = load_backbone(path, config.arch, with_classifier=config.classifier)
    if report.arch not in BACKBONES:
        raise UserError(f"{path} holds a {report.arch}, and only students are exported: pass a CNN's file or a run")
    network = _plain(network, report)
    if step := unfinished(path):
        logger.warning("the run of %s is unfinished: its weights are those of %s", path, step)
    run = run_of(path)
    origin = _read(run / "config.json") if run else {}
    of_result = run is not None and path.name == "encoder.pt" and (run / "result.json").is_file()
    result = _read(run / "result.json") if run and of_result else {}
    evaluations = [Evaluation.load(found) for found in sorted(run.glob("evaluation_*.json"))] if run else []
    return Student(
        network.eval().requires_grad_(False),
        report,
        config.image_size or run_image_size(run),
        origin,
        result,
        [each for each in evaluations if Path(each.checkpoint).name == path.name],
        config.teacher_licence or _known_licence(origin, result),
    )


def ours(student: Student) -> nn.Module:
    """Another network like the student, as this project builds it."""
    return _built(student.report)


def _built(report: LoadReport) -> nn.Module:
    network = build_backbone(report.arch, report.classes)
    if report.classes is None:
        set_head(network, nn.Identity())
    return network


def _plain(network: nn.Module, report: LoadReport) -> nn.Module:
    """The same weights in a network that takes images as they were normalised when it was trained."""
    if report.normalisation == USUAL:
        return network
    plain = _built(report)
    plain.load_state_dict(network.state_dict())
    return plain


def _known_licence(origin: dict[str, Any], result: dict[str, Any]) -> str | None:
    """Of the teacher's weights, as the run noted it, or as is known of a published file."""
    teacher, credit = origin.get("teacher"), result.get("teacher")
    if isinstance(credit, dict) and credit.get("licence"):
        return str(credit["licence"])
    seen = recognise("", str(teacher.get("md5", "")), str(teacher.get("sha256", ""))) if teacher else None
    return seen.known.licence if seen else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"{error}: restore it, or pass the file of weights from elsewhere") from error


@torch.no_grad()
def outputs(network: Network, images: Tensor) -> Tensor:
    """What a network makes of images [N, 3, H, W], flat: [N, d]."""
    return network(images).float().flatten(1)

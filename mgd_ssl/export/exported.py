"""An export from settings to a file that another library has read: write, load back, compare, keep."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from mgd_ssl.config import DEVIATION, MEAN
from mgd_ssl.errors import UserError
from mgd_ssl.export.config import ExportConfig
from mgd_ssl.export.student import Network, Student, load_student, outputs
from mgd_ssl.files import ELSEWHERE, check_place, writing
from mgd_ssl.printable import shown

BATCHES = (5, 1)  # images that both networks are given: whatever their number, the answer is the same


class Writer(Protocol):
    """What the module of a format has."""

    def carries(self, student: Student) -> bool:
        """Whether the format has this network."""
        ...

    def write(self, student: Student, path: Path, config: ExportConfig) -> None:
        """Write the file or folder."""
        ...

    def read(self, student: Student, path: Path, config: ExportConfig) -> Network:
        """What the other library makes of it."""
        ...

    def usage(self, student: Student, path: Path) -> str:
        """How to use it, in a few lines."""
        ...


class Needs(NamedTuple):
    """What a format asks for."""

    packages: tuple[str, ...] = ()  # importable, for writing and for loading back
    suffix: str = ""  # the name has to end so


FORMATS = {
    "torchvision": Needs(),
    "timm": Needs(("timm", "safetensors"), ".safetensors"),
    "safetensors": Needs(("safetensors",)),
    "onnx": Needs(("onnx", "onnxscript", "onnxruntime"), ".onnx"),
    "detectron2": Needs(suffix=".pkl"),  # anything else detectron2 takes for its own pickled checkpoints
    "huggingface": Needs(("timm", "safetensors", "transformers")),
}


@dataclass(frozen=True)
class Exported:
    """What was written, and how exactly the other library computes it."""

    path: Path
    arch: str
    classes: int | None  # None: it returns features
    difference: float  # largest absolute one
    largest: float  # absolute output
    usage: str


def export(config: ExportConfig) -> Exported:
    """Write a network in another library's format.

    Raises:
        UserError: when a setting, a file or a package is at fault, or the other library computes something else; then
            nothing is left behind.
        DiskError: when it cannot be written.
    """
    check(config)
    whole = config.model_copy(update={"classifier": config.classifier and config.format != "detectron2"})
    student = load_student(whole)
    chosen = writer(config.format)
    if not chosen.carries(student):
        kept = f" with a classifier of {student.classes} classes" if student.classes else ""
        carrying = [name for name in FORMATS if writer(name).carries(student)]
        raise UserError(
            f"{config.format} is not known to hold a {student.arch}{kept}: choose --format {' or '.join(carrying)}"
        )
    with writing(config.out, ELSEWHERE, at_start=True):
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=config.out.parent, prefix=f".{config.out.name}.") as folder:
            unchecked = Path(folder) / config.out.name
            with blamed(config.format):
                chosen.write(student, unchecked, config)
                difference, largest = compared(student, chosen.read(student, unchecked, config))
            if not difference <= config.tolerance * largest:
                raise UserError(
                    f"{config.format} computes something else: its outputs differ by up to {difference:.3g} where the "
                    f"largest is {largest:.3g}, so {config.out} is not kept: choose another --format, or raise "
                    f"--tolerance above {config.tolerance:g} if that is near enough"
                )
            synced(unchecked)
            os.rename(unchecked, config.out)
    return Exported(config.out, student.arch, student.classes, difference, largest, chosen.usage(student, config.out))


@contextmanager
def blamed(format: str) -> Iterator[None]:
    """What another library raises in the block becomes one sentence."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise UserError(
            f"{format} could not write or read the network ({shown(why)}), so nothing is kept: choose another "
            "--format, or other versions of its packages"
        ) from error


def writer(name: str) -> Writer:
    """The module of a format."""
    return cast(Writer, import_module(f"mgd_ssl.export.{name}"))


def check(config: ExportConfig) -> None:
    """Raise UserError where the settings do not fit one another, a package is missing, or `out` cannot be."""
    needs, out = FORMATS[config.format], config.out
    if missing := [name for name in needs.packages if find_spec(name) is None]:
        raise UserError(f"{config.format} needs {' and '.join(missing)}: pip install 'mgd_ssl[export]'")
    if needs.suffix and out.suffix != needs.suffix:
        raise UserError(f"out is {shown(str(out))}: {config.format} tells its files by {needs.suffix}, end it so")
    if os.path.lexists(out):
        raise UserError(f"{out} is there already: remove it, or choose another --out")
    if config.push and config.format != "huggingface":
        raise UserError(f"push is {config.push!r} and format {config.format}: choose --format huggingface to upload")
    if config.normalise and config.format != "onnx":
        raise UserError(f"normalise is true and format {config.format}: only onnx can hold the normalisation")
    if config.push and find_spec("huggingface_hub") is None:
        raise UserError("push needs huggingface_hub: pip install 'mgd_ssl[export]'")
    check_place(out)


def compared(student: Student, network: Network) -> tuple[float, float]:
    """Largest difference between the student's outputs and another network's, and the student's largest output."""
    differences, largest = [], []
    for images in sample_images(student.image_size):
        expected, returned = outputs(student.network, images), outputs(network, images)
        if expected.shape != returned.shape:
            raise UserError(
                f"the network that was written returns {list(returned.shape)} and not {list(expected.shape)} for "
                f"{len(images)} images: report this as a bug"
            )
        differences.append((expected - returned).abs().max())
        largest.append(expected.abs().max())
    return float(torch.stack(differences).max()), float(torch.stack(largest).max())


def sample_images(size: int) -> list[Tensor]:
    """Batches of normalised images [N, 3, size, size] of smooth colours, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    coarse = (torch.rand(count, 3, 8, 8, generator=generator) for count in BATCHES)
    return [(torch.nn.functional.interpolate(each, size, mode="bilinear") - mean) / deviation for each in coarse]


def synced(path: Path) -> None:
    """Return when a file, or the files in a folder, survive a power cut; some libraries close them to other users."""
    hidden = os.umask(0)
    os.umask(hidden)
    for file in [path] if path.is_file() else path.iterdir():
        file.chmod(0o666 & ~hidden)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())

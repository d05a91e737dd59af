"""Our own keys, which are torchvision's, and what is known of the network, in a file that can run no code."""

from pathlib import Path

from torch import nn

from mgd_ssl.export import torchvision
from mgd_ssl.export.config import ExportConfig
from mgd_ssl.export.student import Network, Student, ours


def carries(student: Student) -> bool:
    """It takes any network."""
    return True


def write(student: Student, path: Path, config: ExportConfig) -> None:
    """Write the file."""
    from safetensors.torch import save_file

    save_file(student.weights, path, student.metadata())


def read(student: Student, path: Path, config: ExportConfig) -> Network:
    """torchvision's network with the weights in a file, ours where torchvision has none."""
    from safetensors.torch import load_file

    network: nn.Module = torchvision.built(student) if torchvision.carries(student) else ours(student)
    network.load_state_dict(load_file(path))
    return network.eval()


def usage(student: Student, path: Path) -> str:
    """Python that loads it."""
    if torchvision.carries(student):
        return torchvision.usage(student, path).replace("torch.load(", "safetensors.torch.load_file(")
    classes = "" if student.classes is None else f", {student.classes}"
    network = f"model = mgd_ssl.networks.backbones.build_backbone({student.arch!r}{classes})"
    head = "" if student.classes is not None else f"\nmodel.{student.head} = torch.nn.Identity()"
    return f"{network}{head}\nmodel.load_state_dict(safetensors.torch.load_file({str(path)!r}))"

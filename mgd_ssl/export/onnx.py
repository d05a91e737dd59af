"""A graph for onnxruntime and others, of torch's dynamo exporter, for any number of images."""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from mgd_ssl.export.config import ExportConfig
from mgd_ssl.export.student import Network, Student
from mgd_ssl.networks.normalisation import Normalisation


class Normalised(nn.Module):
    """A network that takes images with values from 0 to 1."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(normalisation.std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in 0..1 -> what the network returns."""
        returned: Tensor = self.network((images - self.mean) / self.deviation)
        return returned


def carries(student: Student) -> bool:
    """It takes any network."""
    return True


def write(student: Student, path: Path, config: ExportConfig) -> None:
    """Write the file."""
    network = Normalised(student.network, student.normalisation) if config.normalise else student.network
    example = torch.zeros(2, 3, student.image_size, student.image_size)
    chatty = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript"), logging.getLogger("onnx_ir")
    levels = [each.level for each in chatty]
    for each in chatty:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network.eval(), (example,), dynamo=True, verbose=False, opset_version=config.opset,
                input_names=["images"], output_names=["logits" if student.classes else "features"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    finally:
        for each, level in zip(chatty, levels, strict=True):
            each.setLevel(level)
    assert program is not None
    for name, value in student.metadata().items():
        program.model.metadata_props[name] = value
    program.save(str(path), external_data=False)


def read(student: Student, path: Path, config: ExportConfig) -> Network:
    """The graph as onnxruntime computes it; with the normalisation inside it is given images that are not."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in student.normalisation)

    def network(images: Tensor) -> Tensor:
        given = images * deviation + mean if config.normalise else images
        (returned,) = session.run(None, {"images": given.numpy()})
        return torch.from_numpy(returned)

    return network


def usage(student: Student, path: Path) -> str:
    """Python that runs it."""
    return (
        f"session = onnxruntime.InferenceSession({str(path)!r})\n"
        'features, = session.run(None, {"images": images})  # float32 [N, 3, H, W]'
    )

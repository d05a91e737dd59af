"""The parts of a step whose bytes count on a GPU, lowered for an H100: `python -m tests.sm90_parts` prints JSON."""

import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mgd_ssl.data.upload import Upload
from mgd_ssl.data.views_device import begun, blurred, colour_operation
from mgd_ssl.mgd.mgd import FEWEST_BYTES, MGD, Target
from mgd_ssl.run.runtime import Runtime
from tests.sm90 import MODE, Kernels, kernels, spilled
from tests.sm90_shapes import BATCH, SIZE, STAGES

HALF = torch.bfloat16
BLOCKS = {"XBLOCK": 64, "YBLOCK": 64, "R0_BLOCK": 16}


class Loss(nn.Module):
    """The distillation loss from reduced maps."""

    def __init__(self, mgd: MGD) -> None:
        super().__init__()
        self.mgd = mgd

    def forward(self, *given: Tensor) -> Tensor:
        student, targets, margins = given[:4], given[4:8], given[8:]
        return self.mgd.loss(student, [Target(*pair) for pair in zip(targets, margins, strict=True)])


class Reduction(Loss):
    """The teacher's maps reduced to the student's channels."""

    def forward(self, *teacher: Tensor) -> Any:
        return [each for target in self.mgd.reduce(teacher) for each in target]


def maps(times: int) -> list[Tensor]:
    """One a stage, with so many times the student's channels."""
    with MODE:
        made = [torch.empty(BATCH, times * c, edge, edge, dtype=HALF) for c, edge in STAGES]
        return [each.to(memory_format=torch.channels_last) for each in made]


def lowered(part: Loss, given: list[Tensor], train: bool) -> list[Kernels]:
    """A part's kernels, its weights being inputs too."""
    state = {**dict(part.named_parameters()), **dict(part.named_buffers())}
    with MODE:
        values = [torch.empty(v.shape, dtype=v.dtype).requires_grad_(v.requires_grad) for v in state.values()]

    def call(*inputs: Tensor) -> Any:
        return functional_call(part, dict(zip(state, inputs, strict=False)), inputs[len(state) :])

    return kernels(call, [*values, *given], FEWEST_BYTES, train)


def distillation() -> dict[str, list[Kernels]]:
    """Reduction, and the loss forward and backward."""
    mgd = MGD([c for c, _ in STAGES], [4 * c for c, _ in STAGES]).train()
    mgd.set_assignments([torch.randperm(4 * c).view(c, 4) for c, _ in STAGES])
    with MODE:
        margins = [torch.empty(c) for c, _ in STAGES]
    student = [each.requires_grad_() for each in maps(1)]
    forward, backward = lowered(Loss(mgd), [*student, *maps(1), *margins], True)
    return {"reduction": lowered(Reduction(mgd), maps(4), False), "forward": [forward], "backward": [backward]}


def views() -> dict[str, list[Kernels]]:
    """One finished view: its beginning, an operation, which is done four times, and its end."""
    upload = Upload(Runtime(torch.device("cpu"), HALF, torch.channels_last, 1))
    with MODE:
        pixels, rows = torch.empty(BATCH, SIZE, SIZE, 3, dtype=torch.uint8), torch.empty(BATCH, 15)
        operation = rows[:, 0]
        upload.mean, upload.deviation = torch.empty(3, 1, 1), torch.empty(3, 1, 1)

    def end(pixels: Tensor, rows: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        upload.mean, upload.deviation = mean, deviation
        return upload.as_trained_on(blurred(pixels, rows, 2.0))

    (first,) = kernels(begun, [pixels, rows], {}, False)
    (one,) = kernels(colour_operation, [pixels, rows, operation], FEWEST_BYTES, False)
    (last,) = kernels(end, [pixels, rows, upload.mean, upload.deviation], {}, False)
    return {"view": [first, one, one, one, one, last]}


def told(parts: list[Kernels]) -> dict[str, Any]:
    """Launches, bytes, the strides of what is written in half precision, and what the largest kernel spills."""
    name, source = max((item for part in parts for item in part.sources.items()), key=lambda item: len(item[1]))
    return {
        "launches": sum(part.launches for part in parts),
        "gigabytes": round(sum(part.gigabytes for part in parts), 3),
        "written": [strides for part in parts for strides in part.written(HALF)],
        "largest": {"name": name, **spilled(source, name, BLOCKS)},
    }


if __name__ == "__main__":
    torch._C._ensureCUDADeviceGuardSet()
    print(json.dumps({name: told(parts) for name, parts in {**distillation(), **views()}.items()}))

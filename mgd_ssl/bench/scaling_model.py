"""The model of docs/scaling.md: what a step moves between devices, and how long it takes then."""

from typing import NamedTuple

MB = 1e6
PARAMETERS = 11_504_832  # of ResNet-18 with MoCo v2's projection head
IMAGE_BYTES = 3 * 224 * 224 * 4
KEY_BYTES = 128 * 4
LAUNCH_SECONDS = 0.012  # of the kernels of a step on a GPU: no batch is faster
BYTES_A_SECOND = 25e9  # into each device from other nodes
HIDDEN = 0.5  # share of a step, its backward pass, behind which gradients are summed


def moved(gpus: int, batch: int, parameters: int = PARAMETERS, image_bytes: int = IMAGE_BYTES) -> dict[str, float]:
    """Bytes a GPU receives in a step with a global batch."""
    elsewhere, local = (gpus - 1) / gpus, batch / gpus
    return {
        "gradients": 2 * elsewhere * parameters * 4,  # ring: reduce, then spread
        "images": elsewhere * local * image_bytes,
        "images, if gathered": elsewhere * batch * image_bytes,
        "keys": elsewhere * (local + batch) * KEY_BYTES,  # back to their queries, and into the queue
    }


class Measured(NamedTuple):
    """A step on one device."""

    batch: int
    step_seconds: float  # without waiting for data
    data_seconds: float  # in which the data workers of this device make a batch
    parameters: int
    image_size: int
    gpu: bool


def step_seconds(measured: Measured, devices: int) -> float | None:
    """Of a step of the same global batch on so many such devices, each with as many data workers of its own; None when
    a device would have fewer than two images."""
    if measured.batch % devices or measured.batch // devices < 2:
        return None
    compute = max(measured.step_seconds / devices, LAUNCH_SECONDS if measured.gpu else 0)
    received = moved(devices, measured.batch, measured.parameters, 3 * measured.image_size**2 * 4)
    gradients, rest = (
        sum(received[name] for name in names) / BYTES_A_SECOND for names in (("gradients",), ("images", "keys"))
    )
    together = compute + max(0.0, gradients - HIDDEN * compute) + rest if devices > 1 else measured.step_seconds
    return max(together, measured.data_seconds / devices)

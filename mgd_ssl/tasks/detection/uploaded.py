"""A batch of padded images on the device."""

from typing import NamedTuple

from torch import Tensor

from mgd_ssl.data.upload import Upload
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.tasks.detection.padding import valid_positions
from mgd_ssl.tasks.detection.samples import DetectionBatch


class Padded(NamedTuple):
    """Normalised images, zero where they are padded."""

    images: Tensor  # [N, 3, H, W]
    sizes: Tensor  # [N, 2] int64 height and width of each


class Uploaded:
    """Brings batches to the device.

    Args:
        runtime: device and memory format.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._upload, self._device = Upload(runtime), runtime.device

    def __call__(self, batch: DetectionBatch) -> Padded:
        """The images of a batch as networks see them."""
        sizes = batch.sizes.to(self._device, non_blocking=True)
        images = self._upload.images(batch.images)
        edges = images.shape[2:]
        return Padded(images * valid_positions(sizes, edges, edges), sizes)

"""A batch on the device: finished there if the workers left that to it, and normalised."""

import torch
from torch import Tensor

from mgd_ssl.config import DEVIATION, MEAN
from mgd_ssl.data.samples import PretrainBatch
from mgd_ssl.data.views_device import Finishing
from mgd_ssl.run.runtime import Runtime


class Upload:
    """Turns pixels in main memory into what networks see.

    Args:
        runtime: device and memory format.
        max_sigma: of the strongest blur of a view, in pixels.
    """

    def __init__(self, runtime: Runtime, max_sigma: float = 0.0) -> None:
        self.device, self.memory_format = runtime.device, runtime.memory_format
        self.dtype = runtime.precision or torch.float32
        self.mean, self.deviation = (
            (torch.tensor(values) * 255).view(3, 1, 1).to(self.device) for values in (MEAN, DEVIATION)
        )
        on_gpu = self.device.type == "cuda"
        self.stream = torch.cuda.Stream(self.device) if on_gpu else None  # of the copies, beside the computation
        # on a GPU compiled in any case: half a hundred operations on whole batches become a few
        self.finished = Finishing(max_sigma, compiled=on_gpu, last=self.as_trained_on)

    def views(self, batch: PretrainBatch) -> list[Tensor]:
        """Normalised views [N, 3, H, W], query first, in the training's precision; their colours are done here if the
        workers left them."""
        views = [self._to_device(pixels) for pixels in batch.views]
        if batch.rows is None:
            return [self.as_trained_on(pixels) for pixels in views]
        rows = self._to_device(batch.rows)
        return [self.finished(*pair) for pair in zip(views, rows, strict=True)]

    def crops(self, batch: PretrainBatch) -> Tensor:
        """Local crops [N L, 3, h, w] of a batch that has some, likewise."""
        assert batch.crops is not None
        crops = self._to_device(batch.crops)
        if batch.crop_rows is None:
            return self.as_trained_on(crops)
        finished: Tensor = self.finished(crops, self._to_device(batch.crop_rows))
        return finished

    def as_trained_on(self, pixels: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] on the device -> normalised [N, 3, H, W] in the training's precision."""
        return self.normalised(pixels).to(self.dtype)

    def images(self, pixels: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> normalised float32 [N, 3, H, W] on the device."""
        return self.normalised(self._to_device(pixels))

    def normalised(self, pixels: Tensor) -> Tensor:
        """The same for pixels on the device; the layout is channels_last as it comes."""
        images = pixels.permute(0, 3, 1, 2).float()  # [N, 3, H, W]
        images = images.sub_(self.mean).div_(self.deviation)
        return images.contiguous(memory_format=self.memory_format)

    def labels(self, labels: Tensor) -> Tensor:
        """Class indexes, or whatever else comes with the images, on the device."""
        return self._to_device(labels)

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Does not wait where the memory is pinned; on a GPU the copy runs beside what was launched before it."""
        if self.stream is None:
            return tensor.to(self.device)
        with torch.cuda.stream(self.stream):
            moved = tensor.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        moved.record_stream(current)  # its memory is given to another copy after the computation that reads it
        return moved

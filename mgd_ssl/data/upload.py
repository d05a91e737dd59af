"""A batch on the device: finished there if the workers left that to it, and normalised."""

import torch
from torch import Tensor

from mgd_ssl.data.samples import PretrainBatch
from mgd_ssl.data.views_device import finish_views
from mgd_ssl.run.runtime import Runtime

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as in MoCo
DEVIATION = (0.229, 0.224, 0.225)


class Upload:
    """Turns pixels in main memory into what networks see.

    Args:
        runtime: device and memory format.
        max_sigma: of the strongest blur of a view, in pixels.
    """

    def __init__(self, runtime: Runtime, max_sigma: float = 0.0) -> None:
        self.device, self.memory_format, self.max_sigma = runtime.device, runtime.memory_format, max_sigma
        self.mean, self.deviation = (
            (torch.tensor(values) * 255).view(3, 1, 1).to(self.device) for values in (MEAN, DEVIATION)
        )
        # on a GPU compiled in any case: half a hundred operations on whole batches become a few
        self._finish = torch.compile(finish_views) if self.device.type == "cuda" else finish_views

    def views(self, batch: PretrainBatch) -> list[Tensor]:
        """Normalised views [N, 3, H, W], query first; their colours are done here if the workers left them."""
        views = [self._to_device(pixels) for pixels in batch.views]
        if batch.rows is not None:
            rows = self._to_device(batch.rows)
            views = [self._finish(*pair, self.max_sigma) for pair in zip(views, rows, strict=True)]
        return [self.normalised(pixels) for pixels in views]

    def images(self, pixels: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> normalised float32 [N, 3, H, W] on the device."""
        return self.normalised(self._to_device(pixels))

    def normalised(self, pixels: Tensor) -> Tensor:
        """The same for pixels on the device; the layout is channels_last as it comes."""
        images = pixels.permute(0, 3, 1, 2).float()  # [N, 3, H, W]
        images = images.sub_(self.mean).div_(self.deviation)
        return images.contiguous(memory_format=self.memory_format)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)  # does not wait where the memory is pinned

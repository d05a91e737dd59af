"""Anchors as detectron2 lays them: sizes are not rounded, and strides are those of the network, whatever the image."""

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

RATIOS = (0.5, 1.0, 2.0)  # height to width
SIZE_IN_STRIDES = 4  # RetinaNet (https://arxiv.org/abs/1708.02002), section 4: 32 pixels at stride 8


class ExactAnchors(AnchorGenerator):
    """torchvision's anchors without its two roundings: of their corners, and of strides to what the padded image and
    the map happen to have.

    Args:
        sizes: edges in pixels of the anchors of every level.
        strides: pixels from one position of a level to the next.
    """

    def __init__(self, sizes: tuple[tuple[float, ...], ...], strides: tuple[int, ...]) -> None:
        self.strides = strides
        super().__init__(sizes, (RATIOS,) * len(sizes))

    @classmethod
    def of_retinanet(cls, strides: tuple[int, ...]) -> "ExactAnchors":
        """Three sizes a level, a third of an octave apart."""
        return cls(tuple(tuple(SIZE_IN_STRIDES * s * 2 ** (i / 3) for i in range(3)) for s in strides), strides)

    @classmethod
    def of_faster_rcnn(cls, strides: tuple[int, ...]) -> "ExactAnchors":
        """One size a level, eight times its stride: 32 pixels at stride 4."""
        return cls(tuple((2.0 * SIZE_IN_STRIDES * s,) for s in strides), strides)

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> Tensor:
        """[ratios x sizes, 4] corners around 0, ratio by ratio."""
        sizes = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        widths, heights = (sizes / roots[:, None]).flatten(), (sizes * roots[:, None]).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """[positions x ratios x sizes, 4] for every image, level after level."""
        grids = [list(map_.shape[-2:]) for map_ in feature_maps]
        device, dtype = feature_maps[0].device, torch.float32
        self.set_cell_anchors(dtype, device)
        strides = [[torch.tensor(s, device=device)] * 2 for s in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)

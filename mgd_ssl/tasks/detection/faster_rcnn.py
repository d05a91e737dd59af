"""Faster R-CNN (https://arxiv.org/abs/1506.01497) on a feature pyramid (https://arxiv.org/abs/1612.03144) of
torchvision's parts, for transfer tests: levels P2 to P6, exact anchors, 100 boxes an image.

torchvision counts classes from 1, 0 being the background; here they begin at 0 outside of the network.
"""

import math
from collections import OrderedDict
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from mgd_ssl.tasks.detection.anchors import RATIOS, ExactAnchors
from mgd_ssl.tasks.detection.detector import DETECTIONS, Boxes, Detector, Trunk


class FasterRCNNDetector(Detector):
    """A Faster R-CNN.

    Args:
        trunk: its ResNet.
        num_classes: without the background.
        pyramid_channels: of the pyramid.
    """

    network: FasterRCNN

    def __init__(self, trunk: Trunk, num_classes: int, pyramid_channels: int = 256) -> None:
        super().__init__()
        body, channels, stem_stride = trunk
        layers = {f"layer{stage}": str(stage - 1) for stage in (1, 2, 3, 4)}
        backbone = BackboneWithFPN(body, layers, channels, pyramid_channels, LastLevelMaxPool())
        pool = MultiScaleRoIAlign(featmap_names=["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
        # torchvision would tell the strides from maps and images, and be wrong where small images are padded by much
        pool.scales = [1 / (stem_stride * 2**level) for level in range(4)]
        first = int(math.log2(stem_stride))
        pool.map_levels = LevelMapper(first, first + 3, canonical_scale=224, canonical_level=4)
        self.network = FasterRCNN(
            backbone,
            num_classes + 1,
            rpn_anchor_generator=ExactAnchors.of_faster_rcnn(tuple(stem_stride * 2**level for level in range(5))),
            rpn_head=RPNHead(pyramid_channels, len(RATIOS)),
            box_roi_pool=pool,
            box_detections_per_img=DETECTIONS,
        )

    def _run(self, images: Tensor, sizes: Tensor, targets: list[Boxes] | None) -> tuple[list[Boxes], dict[str, Tensor]]:
        network = self.network
        edges: list[Any] = [tuple(size) for size in sizes.tolist()]
        features: OrderedDict[str, Tensor] = network.backbone(images)
        proposals, of_rpn = network.rpn(ImageList(images, edges), features, targets)
        found, of_boxes = network.roi_heads(features, proposals, edges, targets)
        return found, {**of_rpn, **of_boxes}

    def losses(self, images: Tensor, sizes: Tensor, targets: list[Boxes]) -> dict[str, Tensor]:
        """Cross entropies and smooth L1 of both stages, by torchvision's names without their `loss_`."""
        shifted = [{"boxes": each["boxes"], "labels": each["labels"] + 1} for each in targets]
        _, losses = self._run(images, sizes, shifted)
        return {name.removeprefix("loss_"): value for name, value in losses.items()}

    def detections(self, images: Tensor, sizes: Tensor) -> list[Boxes]:
        """Boxes above a score of 0.05 after non-maximum suppression at 0.5."""
        found, _ = self._run(images, sizes, None)
        return [{**each, "labels": each["labels"] - 1} for each in found]

"""RetinaNet (https://arxiv.org/abs/1708.02002) of torchvision's parts, set up as detectron2's.

Where the two differ: P6 is made of the last stage and not of P5, anchors are exact, 100 boxes an image, classes are
counted from 0 without a background, and losses may be divided by a moving average.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou, sigmoid_focal_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from mgd_ssl.tasks.detection.anchors import ExactAnchors
from mgd_ssl.tasks.detection.detector import DETECTIONS, Boxes, Detector, Trunk
from mgd_ssl.tasks.detection.norms import group_norm
from moco.dist import sum_over_ranks, world_size

EMA_START, EMA_MOMENTUM = 50.0, 0.9  # of positives an image: detectron2 begins with 100 for its two images a process


class RetinaNetDetector(Detector):
    """A RetinaNet.

    Args:
        trunk: its ResNet.
        num_classes: without a background.
        pyramid_channels: of the pyramid and the heads.
        normaliser: ema, or image as in torchvision.
        norm_heads: GroupNorm after the convolutions of the heads.
    """

    network: RetinaNet
    positives: Tensor

    def __init__(
        self, trunk: Trunk, num_classes: int, pyramid_channels: int = 256, normaliser: str = "ema",
        norm_heads: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        body, channels, stem_stride = trunk
        extra = LastLevelP6P7(channels[3], pyramid_channels)
        extra.use_P5 = False  # torchvision would take P5 where both have as many channels
        layers = {f"layer{stage}": str(stage - 2) for stage in (2, 3, 4)}
        backbone = BackboneWithFPN(body, layers, channels[1:], pyramid_channels, extra)
        anchors = ExactAnchors.of_retinanet(tuple(stem_stride * 2**level for level in range(1, 6)))
        per_position = anchors.num_anchors_per_location()[0]
        head = RetinaNetHead(pyramid_channels, per_position, num_classes, group_norm if norm_heads else None)
        self.network = RetinaNet(
            backbone, num_classes, anchor_generator=anchors, head=head, detections_per_img=DETECTIONS
        )
        self.normaliser = normaliser
        self.register_buffer("positives", torch.tensor(EMA_START))  # an image, moving average

    def outputs(self, images: Tensor) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """What the heads say, the anchors, and how many positions each level has.

        Args:
            images: [N, 3, H, W] normalised and padded.
        """
        features = list(self.network.backbone(images).values())
        heads = {name: value.float() for name, value in self.network.head(features).items()}
        anchors = self.network.anchor_generator(ImageList(images, [(0, 0)] * len(images)), features)
        return heads, anchors, [map_.shape[2] * map_.shape[3] for map_ in features]

    def losses(self, images: Tensor, sizes: Tensor, targets: list[Boxes]) -> dict[str, Tensor]:
        """Focal loss of the classes and L1 of the boxes."""
        heads, anchors, _ = self.outputs(images)
        with torch.autocast(images.device.type, enabled=False):
            if self.normaliser == "image":
                found = self.network.compute_loss(targets, heads, anchors)
                return {"classes": found["classification"], "boxes": found["bbox_regression"]}
            return self.averaged_losses(heads, anchors, targets)

    def averaged_losses(
        self, heads: dict[str, Tensor], anchors: list[Tensor], targets: list[Boxes]
    ) -> dict[str, Tensor]:
        """Sums over the batch, divided by the moving average of anchors that hold an object: per image, and over all
        processes, so that neither the batch nor the number of processes changes a loss."""
        network = self.network
        focal, l1, held = heads["cls_logits"].new_zeros(3)
        for i, (target, anchor) in enumerate(zip(targets, anchors, strict=True)):
            matched = assigned(network, target["boxes"], anchor)  # [A]
            positive = matched >= 0
            wanted = torch.zeros_like(heads["cls_logits"][i])
            wanted[positive, target["labels"][matched[positive]]] = 1.0
            counted = matched != network.proposal_matcher.BETWEEN_THRESHOLDS
            focal = focal + sigmoid_focal_loss(heads["cls_logits"][i][counted], wanted[counted], reduction="sum")
            offsets = network.box_coder.encode_single(target["boxes"][matched[positive]], anchor[positive])
            l1 = l1 + F.l1_loss(heads["bbox_regression"][i][positive], offsets, reduction="sum")
            held = held + positive.sum()
        if self.training:
            self._average(held / len(targets))
        scale = 1 / (self.positives * len(targets))
        return {"classes": focal * scale, "boxes": l1 * scale}

    @torch.no_grad()
    def _average(self, an_image: Tensor) -> None:
        seen = sum_over_ranks(an_image.float()) / world_size()
        self.positives.mul_(EMA_MOMENTUM).add_((1 - EMA_MOMENTUM) * seen.clamp_min(0.5))

    @torch.no_grad()
    def detections(self, images: Tensor, sizes: Tensor) -> list[Boxes]:
        """Boxes above a score of 0.05, at most 1000 a level, after non-maximum suppression at 0.5."""
        heads, anchors, positions = self.outputs(images)
        per_position = heads["cls_logits"].shape[1] // sum(positions)
        levels = [count * per_position for count in positions]
        split = {name: list(value.split(levels, dim=1)) for name, value in heads.items()}
        edges: list[Any] = [tuple(size) for size in sizes.tolist()]
        return self.network.postprocess_detections(split, [list(each.split(levels)) for each in anchors], edges)


def assigned(network: RetinaNet, boxes: Tensor, anchors: Tensor) -> Tensor:
    """The box [A] of every anchor: its index, or the matcher's -1 for background and -2 for neither."""
    if len(boxes) == 0:
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    return network.proposal_matcher(box_iou(boxes, anchors))

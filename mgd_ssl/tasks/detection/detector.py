"""A detector seen from training: images that are normalised and padded, losses by name, boxes."""

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNet

DETECTIONS = 100  # of an image, as COCO counts
Boxes = dict[str, Tensor]  # `boxes` [m, 4] in pixels of the padded image, `labels` [m] from 0 on; `scores` [m]


class Trunk(NamedTuple):
    """A ResNet as a detector takes it apart; its classifier is not used."""

    body: nn.Module
    channels: list[int]  # of its stages 1 to 4
    stem_stride: int  # pixels from one position of its first stage to the next


class Detector(nn.Module):
    """One of torchvision's networks, whose own transforms are left out."""

    network: RetinaNet | GeneralizedRCNN

    @property
    def body(self) -> nn.Module:
        """The ResNet, taken apart: images [N, 3, H, W] -> maps by name."""
        return self.network.backbone.body

    @abstractmethod
    def losses(self, images: Tensor, sizes: Tensor, targets: list[Boxes]) -> dict[str, Tensor]:
        """Losses by name.

        Args:
            images: [N, 3, H, W] normalised and padded.
            sizes: [N, 2] height and width of each.
            targets: `boxes` and `labels` of each.
        """

    @abstractmethod
    def detections(self, images: Tensor, sizes: Tensor) -> list[Boxes]:
        """`boxes`, `labels` and `scores` of every image, best first; in eval mode."""

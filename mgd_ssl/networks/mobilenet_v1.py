"""MobileNet-V1 (https://arxiv.org/abs/1704.04861), which torchvision does not have.

Layers and names are those of the published experiments (Overhaul's and MGD's): plain ReLU, no dropout, and `model`
and `fc` before the keys.
"""

import torch
from torch import Tensor, nn

BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


class MobileNetV1(nn.Module):
    """13 blocks of a depthwise and a pointwise convolution behind a first convolution of stride 2.

    Args:
        num_classes: of the classifier.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        blocks, channels = [nn.Sequential(*_convolution(3, 32, stride=2))], 32
        for width, stride in BLOCKS:
            depthwise = _convolution(channels, channels, stride, groups=channels)
            blocks.append(nn.Sequential(*depthwise, *_convolution(channels, width, size=1)))
            channels = width
        self.model = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> logits [N, num_classes]."""
        maps = self.model(images)
        logits: Tensor = self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(maps, 1), 1))
        return logits


def _convolution(inputs: int, outputs: int, stride: int = 1, size: int = 3, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, its BatchNorm and its ReLU."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

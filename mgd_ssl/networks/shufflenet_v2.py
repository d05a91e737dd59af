"""torchvision's ShuffleNet-V2 with the last ReLU of every branch where its output is used.

The same function and state dict, bit for bit; but now a stage's output exists before its ReLU, that of the channels
that pass through included, which is where MGD reads it.
"""

import torch
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual, ShuffleNetV2, channel_shuffle


class DeferredBlock(InvertedResidual):
    """torchvision's block without the ReLUs at its end; a stage's first block is given what is rectified already."""

    def __init__(self, inp: int, oup: int, stride: int) -> None:
        super().__init__(inp, oup, stride)
        self.branch2[-1] = nn.Identity()
        if stride > 1:
            self.branch1[-1] = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W'] before its ReLU."""
        if self.stride > 1:
            branches = self.branch1(x), self.branch2(x)
        else:
            passed, used = x.chunk(2, dim=1)
            branches = passed, self.branch2(torch.relu(used))
        return channel_shuffle(torch.cat(branches, dim=1), 2)


class DeferredShuffleNetV2(ShuffleNetV2):
    """Stages 2 to 4, each followed by a ReLU of its own, whose input is the stage's map.

    Args:
        channels: of the first convolution, the three stages and the last convolution.
        num_classes: of the classifier.
    """

    def __init__(self, channels: list[int], num_classes: int = 1000) -> None:
        super().__init__([4, 8, 4], channels, num_classes, inverted_residual=DeferredBlock)
        self.relu2, self.relu3, self.relu4 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.relu2(self.stage2(x))
        x = self.relu3(self.stage3(x))
        x = self.relu4(self.stage4(x))
        logits: Tensor = self.fc(self.conv5(x).mean([2, 3]))
        return logits

"""BatchNorm over parts of a batch: one process computes it as several do that have a part each.

Shuffled BatchNorm (see `shuffle.py`) needs parts to shuffle over. The same idea as SplitBatchNorm in MoCo's CIFAR demo
(https://colab.research.google.com/github/facebookresearch/moco/blob/colab-notebook/colab/moco_cifar10_demo.ipynb).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SplitBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm that, in training, normalises equal parts of its batch by their own statistics.

    The running statistics follow the first part, as those of rank 0 are the ones that several processes save. The
    state dict is `nn.BatchNorm2d`'s.
    """

    num_splits = 1

    @classmethod
    def of(cls, norm: nn.BatchNorm2d, num_splits: int) -> "SplitBatchNorm2d":
        """A BatchNorm with the parameters and buffers of another, the very same tensors.

        Args:
            norm: with weight, bias and running statistics.
            num_splits: parts of a batch.
        """
        split = cls(norm.num_features, norm.eps, norm.momentum)
        split.weight, split.bias = norm.weight, norm.bias
        split.running_mean, split.running_var = norm.running_mean, norm.running_var
        split.num_batches_tracked, split.num_splits = norm.num_batches_tracked, num_splits
        return split.train(norm.training)

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape and memory format.

        Raises:
            ValueError: in training, when the parts would not be equal.
        """
        if not self.training:
            return super().forward(images)
        if images.shape[0] % self.num_splits:
            raise ValueError(f"a batch of {images.shape[0]} images has no {self.num_splits} equal parts: change either")
        first, *others = images.chunk(self.num_splits)
        parts = [super().forward(first)]
        parts += [F.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps) for part in others]
        return torch.cat(parts)


def split_batch_norms(network: nn.Module, num_splits: int) -> None:
    """Put a `SplitBatchNorm2d` in the place of every BatchNorm2d inside a network, under the same name."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, SplitBatchNorm2d.of(child, num_splits))

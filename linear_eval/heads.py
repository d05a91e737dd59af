"""Many linear classifiers of the same features, trained at once.

Shapes: N images, H heads, C classes, d features.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linear_eval.protocols import Setting
from linear_eval.stretch import Stretch
from moco.dist import sum_over_ranks


class Scores(NamedTuple):
    """Of each head; accuracies in percent."""

    top1: list[float]
    top5: list[float]
    loss: list[float]


class Heads:
    """H linear classifiers with one start and SGD settings of their own, all in one matrix.

    The gradient of cross entropy is (softmax - one-hot) x features, so a step is two matrix products for all heads
    together, without autograd. The update is torch.optim.SGD's; weight decay acts on the bias too.

    Args:
        weight: [C, d] all heads start from.
        bias: [C] likewise.
        settings: learning rate and weight decay of each head.
        momentum: of SGD.
        stretch: of the steps of a short training; None: plain SGD.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        settings: Sequence[Setting],
        momentum: float,
        stretch: Stretch | None = None,
    ) -> None:
        self.settings, self.momentum, self.stretch = list(settings), momentum, stretch
        num_heads = len(self.settings)
        self.weight = weight.float().repeat(num_heads, 1)  # [H * C, d]
        self.bias = bias.float().repeat(num_heads)  # [H * C]
        self.weight_velocity, self.bias_velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.lr, weight_decay = torch.tensor(self.settings).to(weight.device).unbind(dim=1)  # [H]
        self.weight_decay = weight_decay.repeat_interleave(len(bias))  # [H * C]

    def logits(self, x: Tensor) -> Tensor:
        """[N, d] -> [N, H, C]."""
        return torch.addmm(self.bias, x, self.weight.T).view(len(x), len(self.settings), -1)

    def step(self, x: Tensor, y: Tensor, lr_factor: float, total: int) -> Tensor:
        """One step of SGD on the mean cross entropy of a global batch.

        Args:
            x: features [N, d] of this process's part of the batch.
            y: their classes [N].
            lr_factor: of the heads' learning rates.
            total: images in the batch over all processes.

        Returns:
            Mean cross entropy [H] of this process's part before the step.
        """
        errors = self.logits(x).log_softmax(dim=2)  # [N, H, C]
        label = y.view(-1, 1, 1).expand(-1, len(self.settings), 1)
        losses = -errors.gather(2, label).mean(dim=(0, 2))
        errors = errors.exp_().scatter_add_(2, label, errors.new_full((), -1.0).expand(label.shape)).div_(total)
        rows = errors.view(len(x), -1)  # [N, H * C]
        lr = self.lr * lr_factor
        lengths, bias_lengths = (lr[:, None], lr) if self.stretch is None else self.stretch.lengths(lr, self.momentum)
        self._update(self.weight, self.weight_velocity, rows.T @ x, lengths[:, None])
        self._update(self.bias, self.bias_velocity, rows.sum(dim=0), bias_lengths[:, None])
        return losses

    def _update(self, parameter: Tensor, velocity: Tensor, gradient: Tensor, lengths: Tensor) -> None:
        """One step of SGD; the lengths are broadcast over the parameter as [H, C, ...]."""
        sum_over_ranks(gradient)
        decay = self.weight_decay.view((-1,) + (1,) * (parameter.dim() - 1))
        velocity.mul_(self.momentum).add_(gradient).addcmul_(parameter, decay)
        shape = (len(self.settings), -1, *parameter.shape[1:])
        parameter.view(shape).addcmul_(velocity.view(shape), lengths, value=-1)

    @torch.no_grad()
    def measure(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
        """Accuracy and loss over (x, y) batches, summed over the processes; equal on all ranks.

        A class as likely as the right one counts against a head, and so does a head that is not finite.
        """
        num_heads, num_classes = len(self.settings), len(self.bias) // len(self.settings)
        sums = torch.zeros(4, num_heads, dtype=torch.float64, device=self.bias.device)
        for x, y in batches:
            logits = self.logits(x)
            label = y.view(-1, 1, 1).expand(-1, num_heads, 1)
            right = logits.gather(2, label)  # [N, H, 1]
            rank = num_classes - 1 - (logits < right).sum(dim=2)  # [N, H] classes at least as likely
            losses = (logits.logsumexp(dim=2) - right.squeeze(2)).double()
            sums += torch.stack([(rank < 1).sum(0), (rank < 5).sum(0), losses.sum(0), torch.full_like(sums[0], len(x))])
        top1, top5, loss, count = sum_over_ranks(sums)
        return Scores((100 * top1 / count).tolist(), (100 * top5 / count).tolist(), (loss / count).tolist())

    def state(self) -> dict[str, Any]:
        """All that a training needs to go on."""
        names = ("weight", "bias", "weight_velocity", "bias_velocity")
        return {"settings": [list(s) for s in self.settings], **{name: getattr(self, name).cpu() for name in names}}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        for name in ("weight", "bias", "weight_velocity", "bias_velocity"):
            getattr(self, name).copy_(state[name])


def initial(init: str, num_classes: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weight [C, d] and bias [C] a head starts from, a function of the arguments alone."""
    generator = torch.Generator().manual_seed(seed)
    if init == "normal":  # main_lincls.py of MoCo
        return torch.empty(num_classes, dim).normal_(0, 0.01, generator=generator), torch.zeros(num_classes)
    bound = dim**-0.5  # torch.nn.Linear
    weight = torch.empty(num_classes, dim).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(num_classes).uniform_(-bound, bound, generator=generator)

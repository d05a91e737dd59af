"""SGD of a CPU, in one way through every weight."""

import torch
from torch import Tensor
from torch.optim.sgd import sgd as functional_sgd


class DenseSGD(torch.optim.SGD):
    """torch's SGD with momentum by its fused kernel.

    That copies weights that are channels_last to and fro, unless it is shown the plain blocks of memory that they are.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """See torch; the momenta have to be there."""
        for group in self.param_groups:
            weights: list[Tensor] = [each for each in group["params"] if each.grad is not None]
            momenta = [self._momentum(weight) for weight in weights]
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            functional_sgd(
                [_block(weight, weight) for weight in weights],
                [_block(gradient, weight).contiguous() for gradient, weight in zip(gradients, weights, strict=True)],
                [_block(momentum, weight) for momentum, weight in zip(momenta, weights, strict=True)],
                fused=True,
                **{
                    name: group[name]
                    for name in ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize")
                },
            )

    def _momentum(self, weight: Tensor) -> Tensor:
        """Of a weight, in its memory format, which that of a checkpoint need not be."""
        state = self.state[weight]
        if not _block(state["momentum_buffer"], weight).is_contiguous():
            state["momentum_buffer"] = torch.empty_like(weight).copy_(state["momentum_buffer"])
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def _block(values: Tensor, weight: Tensor) -> Tensor:
    """Values of a weight [O, I, H, W], the axes in the order in which the weight lies in memory."""
    turned = (
        weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
    )
    return values.permute(0, 2, 3, 1) if turned else values

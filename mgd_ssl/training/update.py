"""One update of the weights: forward, backward, SGD, over all processes."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mgd_ssl.errors import TrainingError
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.training.sgd import DenseSGD
from mgd_ssl.training.task import StepOutput
from moco.dist import world_size


class Update:
    """Takes a module one step further.

    Args:
        module: forward(*inputs) -> `StepOutput`, on the device.
        optimizer: of its parameters.
        learning_rate: of every parameter group, by the number of finished steps.
        runtime: device and precision.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        learning_rate: Callable[[int], float],
        runtime: Runtime,
    ) -> None:
        self.module, self.optimizer, self.learning_rate, self.runtime = module, optimizer, learning_rate, runtime
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == torch.float16)
        self.model = module
        self.lr = 0.0  # of the last step

    def distribute(self) -> None:
        """Average gradients over the processes from now on; call it after the module's state is in place."""
        if world_size() == 1:
            return
        with warnings.catch_warnings():
            # torch 2.15 has a successor for it, which keeps copying buffers when the model is wrapped
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            # BatchNorm statistics stay each rank's own: MoCo shuffles so that they differ
            self.model = DistributedDataParallel(
                self.module,
                device_ids=[self.runtime.device] if self.runtime.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

    def __call__(self, inputs: tuple[Any, ...], step: int) -> StepOutput:
        """Forward, backward, update; `step` counts the finished ones."""
        self.lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        with self.runtime.autocast():
            output: StepOutput = self.model(*inputs)
            loss = output.total
        del inputs  # a teacher's maps are freed before the backward pass
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return output

    def check_finite(self, step: int, kept: Callable[[], str]) -> None:
        """Raise TrainingError when the last update left weights that are not finite: the loss would tell a step
        later, after they were saved. They are the same on all ranks.

        Args:
            step: number of finished steps.
            kept: says which checkpoint remains.
        """
        finite = torch.stack([p.isfinite().all() for group in self.optimizer.param_groups for p in group["params"]])
        if not finite.all():
            raise TrainingError(
                f"the weights after step {step} are not finite and {kept()}: lower optim.lr or mgd.weight, or use "
                "precision bfloat16 or float32, and start a new --out"
            )

    def state(self) -> dict[str, Any]:
        """Momentum and the scaler's factor."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        fused = [group["fused"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, fused, strict=True):
            group["fused"] = own  # of this device, not of the one the state was saved on
        self.scaler.load_state_dict(state["scaler"])


def sgd(
    parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float, nesterov: bool = False
) -> torch.optim.SGD:
    """SGD over the parameters that want a gradient, with its momentum at zero."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    device = trained[0].device.type
    options: dict[str, Any] = {"weight_decay": weight_decay, "nesterov": nesterov, "fused": device == "cuda"}
    kind = DenseSGD if momentum and device == "cpu" else torch.optim.SGD
    optimizer = kind(trained, lr, momentum, **options)
    if momentum:
        # torch's fused kernel leaves them uninitialised when the scaler skips the very first step
        for parameter in trained:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer

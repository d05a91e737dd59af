"""One update of the weights, and what it takes over from a saved one."""

import pytest
import torch
from torch import nn

from mgd_ssl.run.runtime import Runtime
from mgd_ssl.training.update import Update, sgd

CPU = Runtime(torch.device("cpu"), None, torch.contiguous_format, 1)


def update_of(network: nn.Module) -> Update:
    return Update(network, sgd(network.parameters(), 0.1, 0.9, 1e-4), lambda step: 0.1, CPU)


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_which_kernel_takes_the_step_is_this_devices_affair(saved: bool, own: bool) -> None:
    one, two = (update_of(nn.Linear(3, 2)) for _ in range(2))
    one.optimizer.param_groups[0]["fused"] = saved  # as on another device
    two.optimizer.param_groups[0]["fused"] = own
    two.load(one.state())
    assert [group["fused"] for group in two.optimizer.param_groups] == [own]

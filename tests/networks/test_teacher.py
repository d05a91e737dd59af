"""The frozen teacher."""

import pytest
import torch
from torch import nn

from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.teacher import Teacher


def trained(arch: str) -> Teacher:
    """A teacher whose BatchNorms are as a training would leave them: nowhere the identity."""
    torch.manual_seed(0)
    backbone = build_backbone(arch)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return Teacher(backbone)


@pytest.mark.parametrize("arch", ["thin_resnet10", "thin_resnet14", "resnet50", "resnext50_32x4d"])
def test_a_folded_teacher_yields_the_same_maps_and_margins(arch: str) -> None:
    plain, folded = trained(arch), trained(arch)
    folded.fold()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.backbone.modules())
    images = torch.randn(2, 3, 64, 64)
    for expected, found in zip(plain.double()(images.double()), folded.double()(images.double()), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    for expected, found in zip(plain.float().margins(), folded.margins(), strict=True):
        assert torch.equal(found, expected)
    assert not any(parameter.requires_grad for parameter in folded.parameters())

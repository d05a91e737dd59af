"""A matching update on its own: what it computes, and in which precision."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mgd_ssl import MGD, GuidedMoCo, MoCo, Teacher
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.loader import Reading, one_pass
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.data.upload import Upload
from mgd_ssl.distillation.guide import Guide
from mgd_ssl.distillation.rematch import rematch
from mgd_ssl.mgd.matching import matching_cost
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.run.runtime import Runtime

CPU = torch.device("cpu")


def networks() -> tuple[GuidedMoCo, MGD, Teacher]:
    torch.manual_seed(0)
    student, teacher = build_backbone("thin_resnet10"), build_backbone("thin_resnet14")
    for network in (student, teacher):
        network.train()(torch.randn(8, 3, 48, 48))  # BatchNorms see data
    taken = Teacher(teacher)
    mgd = MGD([16, 32, 64, 128], taken.channels)
    guide = Guide(student, [f"layer{i}.0.relu" for i in range(1, 5)])
    return GuidedMoCo(MoCo(student, 1, 8), guide), mgd, taken


def naive_costs(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Mean over images of 2 - 2 cos, image by image in double precision."""
    costs = []
    for s_map, t_map in zip(student_maps, teacher_maps, strict=True):
        s, t = (m.double().flatten(2).numpy() for m in (s_map, t_map))  # [N, C, HW]
        s, t = (m / np.maximum(np.linalg.norm(m, axis=2, keepdims=True), 1e-12) for m in (s, t))
        costs.append(np.mean([2 - 2 * a @ b.T for a, b in zip(s, t, strict=True)], axis=0))
    return costs


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16], ids=str)
def test_the_pass_is_in_float32_whatever_the_precision_of_training(
    precision: torch.dtype | None, image_folder: Path
) -> None:
    method, mgd, teacher = networks()
    runtime = Runtime(CPU, precision, torch.channels_last, 1)
    crops = CentreCrops(ImageList.scan(image_folder / "val"), 48, 0)
    method.eval()
    upload = Upload(runtime)
    with one_pass(crops, np.arange(12), Reading(batch_size=5)) as batches, runtime.autocast():
        seen = (upload.images(batch.images) for batch in batches)
        _, kept = rematch(mgd, method.student_maps, teacher, seen, measure_margins=True)
    images = upload.images(crops.__getitems__(range(12)).images)
    maps = method.student_maps(images), teacher(images)
    for cost, expected in zip(kept, naive_costs(*maps), strict=True):
        np.testing.assert_allclose(cost.numpy(), expected, atol=2e-5)
    for margin, t_map in zip(mgd.margins, maps[1], strict=True):
        negative = t_map.double().clamp(max=0).transpose(0, 1).flatten(1)
        mean = negative.sum(1) / (negative < 0).sum(1)
        torch.testing.assert_close(margin.double(), mean, rtol=1e-4, atol=1e-5)
    if precision is not None:  # else the test could not fail
        with torch.autocast("cpu", dtype=precision):
            rounded = naive_costs(method.student_maps(images), teacher(images))
        assert max(np.abs(r - e).max() for r, e in zip(rounded, naive_costs(*maps), strict=True)) > 1e-3


def test_the_product_of_the_costs_is_in_float32_under_autocast() -> None:
    s, t = torch.randn(2, 3, 6, 5, 5, generator=torch.Generator().manual_seed(0)).unbind()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = matching_cost(s, t)
    assert cost.dtype == torch.float32
    np.testing.assert_allclose(cost.numpy() / 3, naive_costs([s], [t])[0], atol=1e-6)

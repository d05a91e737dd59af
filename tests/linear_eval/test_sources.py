"""What a head is trained on: crops that are new in every epoch, with the labels of the images that were seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from linear_eval.feature_batches import LiveSource, Transform
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.order import TrainingOrder
from mgd_ssl.data.random_crops import CROP_AND_FLIP
from mgd_ssl.errors import UserError
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.frozen import FrozenBackbone
from mgd_ssl.run.runtime import Runtime
from moco import ViewKey, draw_view, render_view
from tests.conftest import write_images
from tests.runs import Noted

CPU = Runtime(torch.device("cpu"), None, torch.contiguous_format, 1)


class Pixels(nn.Module):
    """The pixels themselves as features."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def source(root: Path, told: Noted) -> LiveSource:
    report = LoadReport(root, "", "pixels", "", 0, {})
    images = ImageList.scan(root)
    return LiveSource(
        FrozenBackbone(Pixels(), report), images, np.arange(len(images)) * 10, Transform(), 24, 7, CPU, 0, told
    )


def seen(live: LiveSource, epochs: int) -> tuple[list[list[tuple[int, int]]], Tensor, Tensor]:
    """Addresses, features and labels of all batches."""
    count = len(live.images)
    order = TrainingOrder(count, 4, epochs, 3, 0, 0, 1)
    with live.batches(np.arange(count), order) as batches:
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return list(order), x, y


def test_a_live_crop_is_that_of_its_epoch_and_image(tmp_path: Path) -> None:
    write_images(tmp_path, 8)
    live = source(tmp_path, Noted())
    keys, x, y = seen(live, 3)
    assert x.shape == (24, 3 * 24 * 24)
    crops: dict[int, list[Tensor]] = {}
    for (epoch, index), features, label in zip([key for batch in keys for key in batch], x, y.tolist(), strict=True):
        image = live.images.open(index)
        view = draw_view(CROP_AND_FLIP, *image.size, ViewKey(seed=7, epoch=epoch, image=index, view=0))
        pixels = torch.from_numpy(np.array(render_view(image, view, 24)))[None]
        assert torch.equal(features, live.upload.images(pixels).flatten())
        assert label == 10 * index
        crops.setdefault(index, []).append(features)
    for one, two, three in crops.values():
        assert not torch.equal(one, two) and not torch.equal(two, three) and not torch.equal(one, three)


def test_the_stand_in_of_an_unreadable_image_brings_its_own_label(tmp_path: Path) -> None:
    write_images(tmp_path, 8)[2].write_bytes(b"no image")
    told = Noted()
    keys, _, y = seen(source(tmp_path, told), 1)
    labels = dict(zip([index for batch in keys for _, index in batch], y.tolist(), strict=True))
    assert [failure.name for failure in told.unreadable] == ["0002.jpg"]
    assert labels.pop(2) in {10 * index for index in range(8) if index != 2}
    assert labels == {index: 10 * index for index in range(8) if index != 2}


def test_features_that_are_not_finite_are_told_with_their_image_though_not_at_every_step(tmp_path: Path) -> None:
    class Broken(Pixels):
        """From its second batch on, in the third row."""

        batches = 0

        def forward(self, images: Tensor) -> Tensor:
            features = super().forward(images)
            self.batches += 1
            if self.batches > 1:
                features[2] = torch.nan
            return features

    write_images(tmp_path, 8)
    live = source(tmp_path, Noted())
    live.backbone.backbone, live.checked_at_once = Broken(), 4
    order = TrainingOrder(8, 4, 3, 3, 0, 0, 1)
    index = list(order)[1][2][1]
    with live.batches(np.arange(8), order) as batches:
        for _ in range(3):
            next(batches)
        with pytest.raises(UserError, match=f"the features of .*000{index}.jpg are not finite"):
            next(batches)


@pytest.mark.parametrize("values", [Transform(True), Transform(False, torch.full((3,), 2.0), torch.full((3,), 0.5))])
def test_transform_by_hand(values: Transform) -> None:
    x = torch.tensor([[3.0, 0.0, 4.0]])
    expected = [[0.6, 0.0, 0.8]] if values.normalise else [[0.5, -1.0, 1.0]]
    torch.testing.assert_close(values(x), torch.tensor(expected))

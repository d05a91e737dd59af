"""Frozen features against crops cut by hand and a network computed by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.loader import Reading
from mgd_ssl.data.sources import Labelled
from mgd_ssl.evaluation.features import FeatureExtractor, Rows
from mgd_ssl.run.runtime import Runtime
from tests.conftest import write_images

CPU = Runtime(torch.device("cpu"), None, torch.contiguous_format, 1)
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Colours(nn.Module):
    """A BatchNorm of mean colours, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval()
        self.norm.running_mean = torch.tensor([0.3, -0.2, 0.1])
        self.norm.running_var = torch.tensor([4.0, 1.0, 0.25])

    def forward(self, images: Tensor) -> Tensor:
        return self.frozen(self.norm(images.mean(dim=(2, 3))))


def by_hand(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    width, height = image.size
    edge = round(28 * 256 / 224)  # the short side
    size = (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((image.width - 28) / 2), round((image.height - 28) / 2)
    colours = np.asarray(image.crop((left, top, left + 28, top + 28)), dtype=np.float64).mean(axis=(0, 1)) / 255
    normed = ((colours - MEAN) / DEVIATION - [0.3, -0.2, 0.1]) / np.sqrt(np.array([4.0, 1.0, 0.25]) + 1e-5)
    return normed / np.sqrt(1 + 1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_features_are_those_computed_by_hand(normalise: bool, tmp_path: Path) -> None:
    paths = write_images(tmp_path, 9)
    network = Colours().train()
    network.frozen.eval()
    indices = np.array([1, 2, 5, 8])
    labelled = Labelled(ImageList.scan(tmp_path), np.arange(9) * 3)
    found = FeatureExtractor(network, CPU, 28, normalise)(labelled, indices, Reading(batch_size=3))
    expected = np.stack([by_hand(paths[index]) for index in indices])
    if normalise:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-5)
    assert found.labels.tolist() == [3, 6, 15, 24]
    assert (network.training, network.norm.training, network.frozen.training) == (True, True, False)


def test_the_stand_in_of_an_unreadable_image_brings_its_own_label(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 9)
    whole = np.stack([by_hand(path) for path in paths])
    paths[4].write_bytes(b"no image")
    labelled = Labelled(ImageList.scan(tmp_path), np.arange(9) * 3)
    found = FeatureExtractor(Colours(), CPU, 28, normalise=False)(labelled, np.arange(9))
    stand_in = int(np.abs(whole - found.values[4]).sum(axis=1).argmin())
    assert stand_in != 4
    assert found.labels.tolist() == [0, 3, 6, 9, 3 * stand_in, 15, 18, 21, 24]


@pytest.mark.parametrize("at_once", [1, 5, 7, 100])
def test_rows_are_the_same_however_many_are_copied_at_once(at_once: int) -> None:
    expected = torch.arange(34.0).view(17, 2)
    rows = Rows(17, at_once)
    for part in expected.split(3):
        rows.add(part)
    assert torch.equal(rows.all(), expected)
    assert torch.equal(rows.all(), expected)
    assert Rows(0, at_once).all().shape == (0, 0)

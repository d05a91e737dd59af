"""The cache of features: labels are never from it, and what is damaged is computed anew."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from linear_eval import feature_cache as cache
from mgd_ssl.data import images as images_module
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.sources import Labelled
from mgd_ssl.evaluation.features import Features
from mgd_ssl.networks.frozen import FrozenBackbone
from tests.runs import Noted
from tests.two_processes import CPU

Compute = Callable[..., Features]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of which number 4 is damaged."""
    (tmp_path / "images").mkdir()
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (36, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "4.png").write_bytes(b"no image")
    return tmp_path / "images"


@pytest.fixture
def compute(folder: Path, tmp_path: Path, weights_file: Path) -> Compute:
    backbone = FrozenBackbone.load(weights_file)

    def call(labels: Sequence[int], account: Noted | None = None) -> Features:
        features = cache.FeatureCache(tmp_path / "cache", backbone, CPU, image_size=32)
        return features.features("train", Labelled(ImageList.scan(folder), np.array(labels)), account or Noted())

    return call


def entry(tmp_path: Path) -> Path:
    [path] = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    return path


def test_labels_are_those_of_the_call_and_not_of_the_cache(compute: Compute, tmp_path: Path) -> None:
    noted = Noted()
    first = compute(range(10), noted)
    replacement = int(first.labels[4])
    assert replacement != 4 and [int(x) for x in np.delete(first.labels, 4)] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    np.testing.assert_array_equal(first.values[4], first.values[replacement])  # its features too
    computed = entry(tmp_path).stat().st_mtime_ns
    swapped = compute([9 - i for i in range(10)])
    assert swapped.labels.tolist() == [9 - int(label) for label in first.labels]  # of the replacement again
    np.testing.assert_array_equal(swapped.values, first.values)
    assert entry(tmp_path).stat().st_mtime_ns == computed and len(noted.unreadable) == 1


@pytest.mark.parametrize("module", [images_module, "crop"])
def test_another_decoder_or_crop_computes_anew(
    module: object, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute(range(10))
    monkeypatch.setattr(cache, "CROP_VERSION" if module == "crop" else "DECODER_VERSION", -1)
    compute(range(10))
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2


def test_an_entry_that_is_being_written_is_held_against_its_account(tmp_path: Path) -> None:
    part = Features(np.ones((3, 2), dtype=np.float32), np.arange(3))
    writer = cache.Writer(tmp_path / "entry", 9)
    writer.write(part)
    assert cache.Writer(tmp_path / "entry", 9).open() == 3
    values = np.load(writer.unfinished / "values.npy", mmap_mode="r+")
    values[5] = 7  # not yet written, so it does not matter
    assert cache.Writer(tmp_path / "entry", 9).open() == 3
    values[1, 0] = 7
    assert cache.Writer(tmp_path / "entry", 9).open() == 0


def test_the_second_part_continues_the_checksum(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [Features(torch.randn(n, 5, generator=generator).numpy(), np.arange(n)) for n in (4, 2, 3)]
    for i, part in enumerate(parts):
        writer = cache.Writer(tmp_path / "entry", 9)  # one process a part
        assert writer.open() == sum(len(p.labels) for p in parts[:i])
        writer.write(part)
    writer.finish()
    assert cache.damage(tmp_path / "entry", 9) is None
    np.testing.assert_array_equal(np.load(tmp_path / "entry" / "values.npy"), np.concatenate([p.values for p in parts]))

"""Files of the feature cache that are flipped, cut, emptied or lost between two evaluations."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from linear_eval import feature_cache as cache
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.sources import Labelled
from mgd_ssl.evaluation.features import Features
from mgd_ssl.networks.frozen import FrozenBackbone
from tests.linear_eval.conftest import weights
from tests.runs import Noted
from tests.two_processes import CPU

HARMS = ["flip", "cut", "empty", "remove", "longer"]


def harm(path: Path, how: str, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    place = int(rng.integers(len(content)))
    if how == "flip":
        content[place] ^= 1 << int(rng.integers(8))
    path.write_bytes({"cut": bytes(content[:place]), "empty": b"", "longer": bytes(content) + b"\0"}.get(how, content))
    if how == "remove":
        path.unlink()


@pytest.fixture(scope="module")
def made(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FrozenBackbone, ImageList]:
    base = tmp_path_factory.mktemp("features")
    return base / "cache", FrozenBackbone.load(weights(base / "w.pt")), ImageList.scan(image_folder / "val")


def features(made: tuple[Path, FrozenBackbone, ImageList]) -> Features:
    folder, backbone, images = made
    labelled = Labelled(images, np.arange(len(images)))
    found = cache.FeatureCache(folder, backbone, CPU, image_size=32).features("val", labelled, Noted())
    return Features(found.values.copy(), found.labels.copy())


@pytest.mark.parametrize("name", ["values.npy", "rows.npy", "account.json"])
@pytest.mark.parametrize("how", HARMS)
def test_a_damaged_entry_is_computed_anew(
    name: str, how: str, rounds: int, made: tuple[Path, FrozenBackbone, ImageList], caplog: pytest.LogCaptureFixture
) -> None:
    reference = features(made)
    [entry] = [path for path in made[0].iterdir() if path.is_dir()]
    logging.getLogger("mgd_ssl").propagate = True
    for seed in range(rounds):
        rng = np.random.default_rng([seed, HARMS.index(how)])
        before = (entry / name).read_bytes()
        harm(entry / name, how, rng)
        caplog.clear()
        again = features(made)
        np.testing.assert_array_equal(again.values, reference.values)
        np.testing.assert_array_equal(again.labels, reference.labels)
        if how in ("cut", "empty", "remove"):
            assert "are damaged" in caplog.text and "computing them anew" in caplog.text
            assert (entry / name).read_bytes() == before
    assert cache.damage(entry, len(made[2])) is None
    shutil.rmtree(made[0])

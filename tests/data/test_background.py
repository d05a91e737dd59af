"""The background under transparent parts reaches runs, packs and evaluations; composited images are counted."""

import json
import logging
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from linear_eval.evaluator import linear
from mgd_ssl import UserError, pretrain
from mgd_ssl.config import Decoding, PretrainConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.images import Images
from mgd_ssl.data.pack import pack
from mgd_ssl.data.samples import CentreCrops, decoding_as_in
from mgd_ssl.data.sources import open_images
from mgd_ssl.data.unreadable import SkippedFiles
from mgd_ssl.evaluation.config import KNNEvaluationConfig
from mgd_ssl.evaluation.knn_table import evaluate
from mgd_ssl.report.pictures import Folders
from tests.data.coded import SIXTEEN, tiff
from tests.runs import assert_same_end, ended, free_port, start, tiny

pytestmark = pytest.mark.usefixtures("cache")


# every command


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`train/<class>/*.png` (48) and `val/<class>/*.png` (12) that look alike, with other colours where nothing shows:
    `hidden` is what becomes of those."""

    def make(hidden: str) -> Path:
        root = tmp_path_factory.mktemp("clear")
        for split, count in (("train", 24), ("val", 6)):
            for number, name in enumerate("ab"):
                (root / split / name).mkdir(parents=True)
                for i in range(count):
                    rng = np.random.default_rng([count, number, i])
                    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                    pixels = np.dstack([np.asarray(small.resize((40, 36))), np.full((36, 40), 255, np.uint8)])
                    pixels[8:28, :15] = (*(ImageColor.getrgb(hidden)), 0)
                    image = Image.fromarray(pixels)
                    options: dict[str, Any] = {}
                    if i % 4 == 1:  # a palette, of which Pillow warns
                        image = image.convert("RGB").quantize(64)
                        options = {"transparency": bytes([0, 9])}
                    image.save(root / split / name / f"{i:03d}.png", **options)
        return root

    return make


@pytest.fixture(scope="module")
def alike(clear: Callable[[str], Path]) -> tuple[Path, Path]:
    """Two such sets without palettes among them."""
    roots = clear("red"), clear("#00ff80")
    for root in roots:
        for path in root.rglob("*.png"):
            if int(path.stem) % 4 == 1:
                path.unlink()
    return roots


def test_a_run_does_not_see_what_is_hidden(alike: tuple[Path, Path], tmp_path: Path) -> None:
    for name, root in zip("ab", alike, strict=True):
        knn = {"train": root / "train", "val": root / "val", "every_epochs": 3, "k": 3}
        pretrain(**tiny(root, tmp_path / name, optim={"epochs": 1}, knn=knn))
    assert_same_end(tmp_path / "a", tmp_path / "b", step=2)


def test_evaluations_do_not_see_what_is_hidden(alike: tuple[Path, Path], tmp_path: Path) -> None:
    encoder = Path(pretrain(**tiny(alike[0], tmp_path / "run", optim={"epochs": 1})).encoder)
    numbers = []
    for i, root in enumerate(alike):
        shutil.copy(encoder, tmp_path / f"{i}.pt")
        settings: dict[str, Any] = {
            "checkpoint": tmp_path / f"{i}.pt", "data": root, "out": tmp_path / f"out{i}", "image_size": 32,
            "workers": 0,
            "runtime": {"device": "cpu", "threads": 1},
        }  # fmt: skip
        found, _ = evaluate(KNNEvaluationConfig(**settings, k=(1, 3)))
        probe, _ = linear(**settings, protocol=str(short_protocol(tmp_path)))
        features = [np.load(path) for path in sorted((tmp_path / f"out{i}" / "linear_features").glob("*/values.npy"))]
        numbers.append(([e.values for e in found], probe.values, sorted(f.sum() for f in features)))
        black, _ = evaluate(KNNEvaluationConfig(**settings, k=(1,), background="black"))
        assert black[0].details["background"] == "black" and "transparency on black" in black[0].protocol
        assert "transparency" not in found[0].protocol
        with pytest.raises(UserError, match=r"evaluation of something else \(background: white -> #000001\)"):
            linear(**settings, protocol=str(short_protocol(tmp_path)), background="#000001")
    assert numbers[0] == numbers[1]


def short_protocol(folder: Path) -> Path:
    path = folder / "short.toml"
    lines = ('name = "short"', "version = 1", 'features = "cached"', "epochs = 1", "batch_size = 12", "lrs = [0.1]",
             "weight_decays = [0.0]", "momentum = 0.9", 'schedule = "cosine"', 'init = "normal"')  # fmt: skip
    path.write_text("\n".join(lines))
    return path


def test_a_pack_holds_what_shows(alike: tuple[Path, Path], tmp_path: Path) -> None:
    for i, root in enumerate(alike):
        pack(images=root / "val", out=tmp_path / f"{i}", short_side=20, workers=0)
        pack(images=root / "val", out=tmp_path / f"black{i}", short_side=20, workers=0, background=(0, 0, 0))
    shards = [(tmp_path / name / "shard-000000.tar").read_bytes() for name in ("0", "1", "black0", "black1")]
    assert shards[0] == shards[1] and shards[2] == shards[3] and shards[0] != shards[2]
    packed, source = open_images(tmp_path / "0"), open_images(alike[0] / "val")
    expected = np.asarray(source.open(0).resize((22, 20), Image.Resampling.LANCZOS), float)
    assert np.abs(np.asarray(packed.open(0), float) - expected).mean() < 8  # of JPEG


def centre(images: Images) -> list[int]:
    return list(np.asarray(images.open(0))[18, 5])


def test_every_source_carries_its_background(alike: tuple[Path, Path], tmp_path: Path) -> None:
    pack(images=alike[0] / "val", out=tmp_path / "pack", workers=0)
    for source in (alike[0] / "val", tmp_path / "pack", tmp_path / "pack" / "*.tar"):
        images = open_images(source, Decoding("#010203"))
        assert centre(images) == [1, 2, 3]
        assert centre(open_images(source)) == [255, 255, 255]
        assert images.fingerprint() == open_images(source).fingerprint()
        assert images.state() != open_images(source).state()  # features kept on disk are not those of another one
        crops = CentreCrops(images, 36, seed=0).__getitems__([0]).images[0]
        assert crops[18, 5].tolist() == [1, 2, 3]
    folders = Folders()
    assert centre(folders.open(alike[0] / "val", Decoding("black"))) == [0, 0, 0]
    assert centre(folders.open(alike[0] / "val", Decoding())) == [255, 255, 255]


def test_a_pickled_pack_keeps_its_background(alike: tuple[Path, Path], tmp_path: Path) -> None:
    pack(images=alike[0] / "val", out=tmp_path / "pack", workers=0)
    copy = pickle.loads(pickle.dumps(open_images(tmp_path / "pack", Decoding("black"))))
    assert copy.decoding == Decoding("black") and centre(copy) == [0, 0, 0]


def test_an_evaluation_follows_its_run(tmp_path: Path) -> None:
    config = PretrainConfig(out=tmp_path, data={"train": "photos", "background": "black", "max_pixels": 7})
    (tmp_path / "config.json").write_text(json.dumps({"config": config.model_dump(mode="json")}))
    assert decoding_as_in(tmp_path, None, None) == Decoding("black", 7)
    assert decoding_as_in(tmp_path, "white", 9) == Decoding("white", 9)
    assert decoding_as_in(None, None, None) == Decoding()
    (tmp_path / "config.json").write_text('{"config": {"data": {"image_size": 32}}}')  # of a version before
    assert decoding_as_in(tmp_path, None, None) == Decoding()
    for damaged in ("", "{}", "[]", '{"config": {"data": []}}', '{"config": {"data": {"background": 7}}}'):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(UserError, match=r"config.json is damaged"):
            decoding_as_in(tmp_path, None, None)


def test_a_run_from_before_the_setting_is_refused(alike: tuple[Path, Path], tmp_path: Path) -> None:
    settings = tiny(alike[0], tmp_path / "run", optim={"epochs": 1})
    pretrain(**settings)
    saved = tmp_path / "run" / "config.json"
    run = json.loads(saved.read_text())
    del run["config"]["data"]["background"]
    saved.write_text(json.dumps(run))
    with pytest.raises(
        UserError, match=r"data.background: not yet a setting -> white\): restore them, or choose another"
    ):
        pretrain(**settings)
    with pytest.raises(UserError, match=r"data.background: not yet a setting -> black"):
        pretrain(**{**settings, "data": {**settings["data"], "background": "black"}})


# what is said


@pytest.mark.parametrize("workers", [0, 2])
def test_composited_images_are_told_once_with_their_count(
    clear: Callable[[str], Path], tmp_path: Path, workers: int
) -> None:
    root = clear("red")
    pretrain(**tiny(root, tmp_path / "run", data={"workers": workers}))
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    [told] = [line for line in lines if "transparent" in line]
    assert counts(told) == (32, 32)  # after two steps of 16, when the first row is logged
    assert f"images read from {root / 'train'} have transparent parts: they are composited on white" in told


def test_training_and_its_knn_are_on_the_background_that_is_set(alike: tuple[Path, Path], tmp_path: Path) -> None:
    root = alike[0]
    knn = {"train": root / "train", "val": root / "val", "every_epochs": 3, "k": 3}
    data = {"background": "#102030", "max_pixels": 40 * 36}
    pretrain(**tiny(root, tmp_path / "run", data=data, optim={"epochs": 1}, knn=knn))
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    told = [line for line in lines if "transparent parts" in line]
    assert [line.endswith("composited on #102030 (the setting background)") for line in told] == [True] * 3
    assert sorted(counts(line) for line in told) == [(8, 8), (32, 32), (36, 36)]
    [protocol] = [line for line in lines if "voting" in line or "classified" in line]
    assert protocol.endswith(", transparency on #102030")
    with pytest.raises(UserError, match=r"50 images tried in a row are unreadable.*it has 40 x 36 pixels"):
        pretrain(**tiny(root, tmp_path / "none", data={"max_pixels": 40 * 36 - 1}))


def test_the_count_is_that_of_all_processes(clear: Callable[[str], Path], tmp_path: Path) -> None:
    root, port = clear("red"), str(free_port())
    group = [
        start(tiny(root, tmp_path / "run", optim={"epochs": 1}), tmp_path / f"stderr{rank}", env={
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        })
        for rank in range(2)
    ]  # fmt: skip
    assert [ended(process) for process in group] == [0, 0]
    told = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "transparent" in line]
    assert [counts(line) for line in told] == [(32, 32)]
    assert "transparent" not in (tmp_path / "stderr1").read_text()


def counts(line: str) -> tuple[int, int]:
    """`... 3 of the first 16 images ...`."""
    before, after = line.split(" of the first ")
    return int(before.split()[-1]), int(after.split()[0])


def test_opaque_images_are_not_told_of(image_folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    images = ImageList.scan(image_folder / "val")
    account = SkippedFiles(tmp_path / "skipped.jsonl", images, 1.0)
    with caplog.at_level(logging.WARNING, logger="mgd_ssl"):
        account.note(CentreCrops(images, 16, seed=0).__getitems__(range(12)).unreadable)
        account.share()
    assert not caplog.records and account.counts == [0, 12]


def test_nothing_of_pillows_reaches_the_screen(clear: Callable[[str], Path], tmp_path: Path) -> None:
    root = clear("red")
    odd = tmp_path / "odd.tif"
    odd.write_bytes(tiff(SIXTEEN, odd=True))
    loud = f"from PIL import Image; Image.open({str(odd)!r}).load()"
    heard = subprocess.run([sys.executable, "-c", loud], capture_output=True, text=True, check=True).stderr
    assert "UserWarning: Metadata Warning, tag 282 had too many entries" in heard
    for path in (root / "train").rglob("*2.png"):
        path.write_bytes(odd.read_bytes())
    process = start(tiny(root, tmp_path / "run", data={"workers": 1}, optim={"epochs": 1}), tmp_path / "stderr")
    assert ended(process) == 0
    told = (tmp_path / "stderr").read_text()
    assert "Warning" not in told and "Palette" not in told and "tag 282" not in told
    assert told.count("have transparent parts") == 1


def test_the_count_is_told_by_knn(alike: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = pretrain(**tiny(alike[0], tmp_path / "run", optim={"epochs": 1}, data={"background": "#00ff00"})).out
    for background, told in ((None, "#00ff00"), ("black", "black")):  # that of the run, or another one
        capsys.readouterr()
        settings = {"checkpoint": run, "data": alike[0], "k": (1,), "workers": 0, "background": background}
        evaluate(KNNEvaluationConfig(**settings, runtime={"device": "cpu", "threads": 1}))
        lines = [line for line in capsys.readouterr().err.splitlines() if "have transparent parts" in line]
        assert [counts(line) for line in lines] == [(36, 36), (8, 8)]
        assert all(f"composited on {told} (" in line for line in lines)

"""Settings that nobody gave: what they become, where they stay, and that small data learns by them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgd_ssl import UserError, pretrain
from mgd_ssl.automatic import automatic_keys, unfilled
from mgd_ssl.cli import main
from mgd_ssl.command_line import load_toml
from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.settings import SettingError, flattened
from mgd_ssl.tasks.from_data import IMAGENET_IMAGES, RULES, Facts, facts_of, resolved
from mgd_ssl.tasks.moco import check_sizes
from tests.conftest import write_images
from tests.runs import stop_after

PUBLISHED = {  # as the recipe for ImageNet has it, and as these settings were before they could be left out
    "data.image_size": 224, "data.blur_sigma": (0.1, 2.0), "optim.batch_size": 256, "optim.epochs": 200,
    "optim.lr": 0.03, "optim.warmup_epochs": 3.0, "moco.queue_size": 65536, "moco.momentum": 0.999,
    "mgd.weight": 1e-4, "terms.seed.queue_size": 65536, "terms.compress.queue_size": 16384,
    "terms.bingo.queue_size": 65536, "knn.every_epochs": 5,
}  # fmt: skip


def given(**settings: Any) -> PretrainConfig:
    return PretrainConfig(**{"out": "run", **settings, "data": {"train": "photos", **settings.get("data", {})}})


def numbers(facts: Facts, **settings: Any) -> dict[str, Any]:
    """Dotted names and numbers of what the rules filled."""
    config = resolved(given(**settings), facts)[0]
    flat = flattened(config.model_dump())
    return {key: flat[key] for key in RULES}


def test_imagenet_on_gpus_gets_the_published_recipe() -> None:
    assert set(automatic_keys(PretrainConfig)) == set(RULES) == set(PUBLISHED)
    assert numbers(Facts(IMAGENET_IMAGES, 375, 200, 8, cpu=False)) == PUBLISHED


def test_five_hundred_small_images_on_a_cpu() -> None:
    found = numbers(Facts(500, 64, 200, 1, cpu=True), teacher="teacher.pt")
    assert found == {
        "data.image_size": 64, "data.blur_sigma": (0.0286, 0.5714),  # 2 * 64 / 224
        "optim.batch_size": 32, "optim.epochs": 200, "optim.lr": 0.03, "optim.warmup_epochs": 3.0,  # 15 steps an epoch
        "moco.queue_size": 96, "moco.momentum": 0.99, "mgd.weight": pytest.approx(12.25e-4),  # (224 / 64)^2 = 12.25
        "terms.seed.queue_size": 96, "terms.compress.queue_size": 96, "terms.bingo.queue_size": 96,
        "knn.every_epochs": 5,
    }  # fmt: skip


@pytest.mark.parametrize("images", [17, 40, 100, 500, 3000, 15_010, 126_689, 10**7])
@pytest.mark.parametrize("processes", [1, 3, 8])
@pytest.mark.parametrize("cpu", [True, False])
def test_numbers_fit_one_another_whatever_the_data(images: int, processes: int, cpu: bool, monkeypatch: Any) -> None:
    if images < 2 * processes + 16:
        return
    monkeypatch.setattr("mgd_ssl.tasks.moco.world_size", lambda: processes)
    config, _ = resolved(given(), Facts(images, 64, 200, processes, cpu))
    check_sizes(config, images)  # raises where they do not
    optim, steps = config.optim, config.optim.epochs * (images // config.optim.batch_size)
    assert not unfilled(config)
    assert steps >= 2000 and (steps <= 3000 + images / optim.batch_size or not cpu)
    assert config.moco.queue_size <= max(images / 4, optim.batch_size)
    assert optim.warmup_epochs <= optim.epochs / 20


@pytest.mark.parametrize(("edge", "size"), [(8, 32), (28, 32), (47, 32), (49, 64), (64, 64), (96, 96), (3000, 224)])
def test_views_are_no_larger_than_the_images(edge: int, size: int) -> None:
    assert numbers(Facts(500, edge, 200, 1, True))["data.image_size"] == size


def test_what_is_given_stays_and_the_rest_follows_it() -> None:
    facts = Facts(500, 64, 200, 1, True)
    config, told = resolved(given(data={"image_size": 112}, optim={"batch_size": 50, "epochs": 4}), facts)
    assert (config.data.image_size, config.optim.batch_size, config.optim.epochs) == (112, 50, 4)
    assert (config.data.blur_sigma, config.moco.queue_size, config.optim.warmup_epochs) == ((0.05, 1.0), 100, 0.2)
    assert config.mgd.weight == pytest.approx(4e-4)
    named = [sentence.split()[0] for sentence in told]
    assert named == ["data.blur_sigma", "optim.lr", "optim.warmup_epochs", "moco.queue_size", "moco.momentum"]
    assert numbers(facts, optim={"batch_size": 1024})["optim.lr"] == pytest.approx(
        0.12
    )  # Goyal et al. 2017, section 2.1


def test_sizes_are_the_images_own(tmp_path: Path) -> None:
    for number, (width, height) in enumerate([(40, 90), (70, 60), (64, 300)]):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    facts = facts_of(ImageList.scan(tmp_path), 0, 2, True)
    assert facts == Facts(4, 60, 3, 2, True)  # of 40, 60 and 64
    assert facts_of(ImageList(tmp_path, ["broken.png"]), 0, 1, True).edge is None
    assert numbers(Facts(4, None, 0, 1, True))["data.image_size"] == 224


@pytest.mark.parametrize("word", ["auto", "None"])
def test_auto_can_be_said(word: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[optim]\nepochs = 7\nlr = 'auto'\n[data]\ntrain = 'photos'\nblur_sigma = 'auto'")
    from mgd_ssl.commands.pretrain import read

    config = read(["--config", str(file), "--out", "run", "--optim.epochs", word, "--optim.batch-size", "8"])
    assert {"optim.epochs", "optim.lr", "data.blur_sigma"} <= set(unfilled(config))
    assert config.optim.batch_size == 8
    file.write_text("[optim]\nepochs = 'soon'")
    with pytest.raises(UserError, match=r"epochs is 'soon': give a whole number"):
        load_toml(PretrainConfig, file)
    with pytest.raises(SettingError, match=r"optim.epochs is 0: set it to 1 or more"):
        given(optim={"epochs": 0})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, 40, seed=4)
    return folder


def short(photos: Path, out: Path, **optim: Any) -> dict[str, Any]:
    return {
        "out": out, "student": "thin_resnet10", "data": {"train": photos, "workers": 0}, "optim": optim,
        "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip


def test_a_run_saves_numbers_and_goes_on_with_them(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--out", str(out), "--student", "thin_resnet10", "--data.train", str(photos), "--data.workers", "0"]
    flags += ["--optim.epochs", "2", "--runtime.device", "cpu", "--runtime.threads", "1"]
    with monkeypatch.context() as context:
        stop_after(context, 3)
        main(["pretrain", *flags])
    assert "auto: data.image_size" in (out / "log.txt").read_text()
    saved = json.loads((out / "config.json").read_text())["config"]
    flat = flattened(saved)
    assert all(flat[key] is not None for key in RULES)
    assert (flat["optim.batch_size"], flat["moco.queue_size"]) == (16, 16)
    # another machine would find other numbers; those of the run stay
    with monkeypatch.context() as context:
        context.setattr("mgd_ssl.tasks.from_data.CPU_BATCH", 8)
        context.setattr("mgd_ssl.tasks.from_data.LEAST_BATCH", 8)
        assert main(["pretrain", *flags]) == 0
    assert json.loads((out / "config.json").read_text())["config"] == saved
    assert json.loads((out / "result.json").read_text())["steps"] == 4
    capsys.readouterr()
    assert main(["pretrain", *flags, "--optim.batch-size", "8"]) == 2
    assert "optim.batch_size: 16 -> 8" in capsys.readouterr().err
    write_images(photos / "more", 2, seed=9)
    assert main(["pretrain", *flags]) == 2
    assert "the images of data.train: 40 -> 42" in capsys.readouterr().err


def test_numbers_of_a_start_that_came_to_nothing_are_forgotten(photos: Path, tmp_path: Path) -> None:
    settings = short(photos, tmp_path / "run", epochs=1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("mgd_ssl.tasks.student.train_to_the_end", broken)
        with pytest.raises(RuntimeError):
            pretrain(**settings)
    folder = tmp_path / "run"
    before = json.loads((folder / "config.json").read_text())["config"]["optim"]["batch_size"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("mgd_ssl.tasks.from_data.LEAST_BATCH", 8)
        pretrain(**settings)
    assert (before, json.loads((folder / "config.json").read_text())["config"]["optim"]["batch_size"]) == (16, 8)


def broken(*_: Any) -> None:
    raise RuntimeError("as a machine that goes down")

"""Settings that nobody gave follow from the images, and none that was given does."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgd_ssl import pretrain
from mgd_ssl.cli import main
from mgd_ssl.command_line import CONFIGS, load_toml, parse
from mgd_ssl.config import DataConfig, MGDConfig, PretrainConfig
from mgd_ssl.data.sources import open_images
from mgd_ssl.errors import UserError
from mgd_ssl.setting_keys import automatic_keys, flattened, given_keys, value_of
from mgd_ssl.settings import incomplete
from mgd_ssl.tasks.automatic import RULES, Facts, edge_of, filled

IMAGENET = Facts(1_281_167, 375, on_cpu=False, parts=1)
SMALL = Facts(500, 64, on_cpu=True, parts=1)


def config(**given: object) -> PretrainConfig:
    return PretrainConfig(out=Path("run"), **{"data": {"train": Path("images")}, **given})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """48 pictures of 72 x 100 pixels, and a broken one."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for i in range(48):
        Image.fromarray(rng.integers(0, 256, (100, 72, 3), np.uint8)).save(folder / f"{i:02d}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_every_automatic_setting_has_a_rule() -> None:
    assert set(RULES) == set(automatic_keys(PretrainConfig))


def test_imagenet_on_gpus_gets_the_published_numbers() -> None:
    before = config(teacher=Path("r50.pth"), terms={"seed": {"weight": 1.0}})
    after, found = filled(before, IMAGENET)
    assert found == {} and after.model_dump() == before.model_dump()


def test_a_small_set_on_a_cpu() -> None:
    after, found = filled(config(terms={"compress": {"weight": 1.0}}), SMALL)
    assert found == {
        "data.image_size": 64, "data.blur_sigma": (0.029, 0.571),  # 64 / 224 of 0.1 and of 2
        "optim.batch_size": 32,  # 500 / 12 = 41
        "moco.momentum": 0.99,  # 200 epochs of 15 steps
        "moco.queue_size": 96, "terms.compress.queue_size": 96,  # 500 / 4 = 125 = 3 * 32 and some
    }  # fmt: skip
    assert after.terms.seed.queue_size == 65536  # of no use to anybody
    many, _ = filled(config(), Facts(15_010, 64, on_cpu=True, parts=1))
    assert (many.optim.epochs, many.optim.warmup_epochs) == (13, 13 / 20)  # 200,000 / 15,010
    assert (many.optim.batch_size, many.moco.queue_size) == (256, 3584)


@pytest.mark.parametrize(("edge", "size"), [(8, 64), (64, 64), (79, 64), (80, 80), (223, 208), (224, 224), (4000, 224)])
def test_views_are_as_large_as_the_images(edge: int, size: int) -> None:
    assert filled(config(), Facts(500, edge, on_cpu=True, parts=1))[0].data.image_size == size


@pytest.mark.parametrize(("size", "local"), [(224, 96), (64, 32), (160, 64), (32, 16)])
def test_local_crops_are_in_proportion_to_the_views(size: int, local: int) -> None:
    given = config(data={"train": Path("x"), "image_size": size, "local_crops": 2})
    assert filled(given, SMALL)[0].data.local_size == local
    assert filled(config(), SMALL)[0].data.local_size == 96  # of no use to anybody


@pytest.mark.parametrize(("parts", "batch"), [(1, 16), (3, 15), (8, 16), (12, 24)])
def test_a_batch_has_two_images_for_every_part(parts: int, batch: int) -> None:
    assert filled(config(), Facts(100, 64, on_cpu=True, parts=parts))[0].optim.batch_size == batch


def test_what_is_given_stays_though_it_is_the_default() -> None:
    given = {
        "data": {"train": Path("images"), "image_size": 224, "blur_sigma": (0.1, 2.0)},
        "moco": {"queue_size": 65536, "momentum": 0.999},
        "mgd": {"weight": 1e-4},
        "optim": {"epochs": 200, "batch_size": 256, "warmup_epochs": 3},
    }
    assert filled(config(**given), SMALL) == (config(**given), {})


def elements(channels: tuple[int, ...], size: int, first: int = 4) -> float:
    """Of four stages, whose strides double from the first one's on, each times its published weight."""
    sides = [-(-size // (first * 2**i)) for i in range(4)]
    return sum(w * c * side**2 for w, c, side in zip((0.125, 0.25, 0.5, 1.0), channels, sides, strict=True))


@pytest.mark.parametrize(
    ("student", "channels", "size", "stride"),
    [
        ("resnet18", (64, 128, 256, 512), 64, 4), ("resnet34", (64, 128, 256, 512), 224, 4),
        ("resnet50", (256, 512, 1024, 2048), 224, 4), ("thin_resnet10", (16, 32, 64, 128), 48, 2),
    ],
)  # fmt: skip
def test_the_weight_of_mgd_is_that_of_a_mean_over_elements(
    student: str, channels: tuple[int, ...], size: int, stride: int
) -> None:
    asked = config(student=student, teacher=Path("r50.pth"), data={"train": Path("images"), "image_size": size})
    weight = filled(asked, SMALL)[0].mgd.weight
    assert weight == pytest.approx(
        1e-4 * elements((64, 128, 256, 512), 224) / elements(channels, size, stride), rel=5e-3
    )
    louder, _ = filled(asked.model_copy(update={"mgd": MGDConfig(stage_weights=(1.0, 1.0, 1.0, 2.0))}), SMALL)
    assert louder.mgd.weight == weight  # so that stages which count for more do
    without = config(student=student, data={"train": Path("images"), "image_size": size})
    assert filled(without, SMALL)[0].mgd.weight == 1e-4


def test_the_size_is_the_median_of_those_that_can_be_read(images: Path) -> None:
    assert edge_of(open_images(images), seed=0) == 72


def test_flags_and_files_give_and_defaults_do_not(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text("[optim]\nepochs = 200\n")
    argv = [
        "--config",
        str(file),
        "--out",
        "o",
        "--data.train",
        "d",
        "--moco.queue-size",
        "65536",
        "--data.image_size=64",
    ]
    given = given_keys(parse(PretrainConfig, argv, "mgd-ssl pretrain")) & set(automatic_keys(PretrainConfig))
    assert given == {"optim.epochs", "moco.queue_size", "data.image_size"}


NOBODY_LOOKS = {  # at these where the weight is 0 or there is no teacher
    "terms.seed.queue_size": "terms.seed.weight", "terms.compress.queue_size": "terms.compress.weight",
    "terms.bingo.queue_size": "terms.bingo.weight", "moco.queue_size": "moco.weight", "moco.momentum": "moco.weight",
    "data.local_size": "data.local_crops",
}  # fmt: skip


def test_published_recipes_give_everything() -> None:
    for path in sorted(CONFIGS.glob("*.toml")):
        with incomplete():
            try:
                recipe = load_toml(PretrainConfig, path)
            except UserError:
                continue  # of another command
        if path.stem.startswith("cub200") or path.stem.endswith("alone"):
            continue  # likewise, with settings that both have
        missing = set(automatic_keys(PretrainConfig)) - given_keys(recipe)
        used = {key for key in missing if key not in NOBODY_LOOKS or value_of(recipe, NOBODY_LOOKS[key]) > 0}
        if recipe.data.recipe == "weak":
            used -= {"data.blur_sigma"}
        if path.stem.endswith("moco"):
            used -= {"mgd.weight"}
        assert not used, path.stem


def run(images: Path, out: Path, *flags: str) -> int:
    argv = ["pretrain", "--data.train", str(images), "--out", str(out), "--student", "thin_resnet10", *flags]
    return main([*argv, "--runtime.device", "cpu", "--runtime.threads", "1", "--data.workers", "0"])


def test_a_run_says_and_keeps_what_it_found(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(images, out, "--optim.epochs", "1", "--data.max-unreadable", "1") == 0
    said = (out / "log.txt").read_text()
    assert "not given, so from 49 images of 72 pixels and a CPU: data.image_size 64, " in said
    saved = flattened(json.loads((out / "config.json").read_text())["config"])
    found = {key: saved[key] for key in ("data.image_size", "optim.batch_size", "moco.queue_size", "moco.momentum")}
    assert found == {"data.image_size": 64, "optim.batch_size": 16, "moco.queue_size": 16, "moco.momentum": 0.99}

    # the same command later, when the rules would find something else
    (out / "result.json").unlink()
    monkeypatch.setattr("mgd_ssl.tasks.automatic.LEAST_EDGE", 96)
    assert run(images, out, "--optim.epochs", "1", "--data.max-unreadable", "1") == 0
    assert flattened(json.loads((out / "config.json").read_text())["config"]) == saved
    # but not one that gives something else
    capsys.readouterr()
    assert run(images, out, "--optim.epochs", "1", "--data.max-unreadable", "1", "--data.image-size", "96") == 2
    assert "data.image_size: 64 -> 96" in capsys.readouterr().err


def test_python_gives_by_keywords(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain(
        out=out, student="thin_resnet10", data={"train": images, "workers": 0, "image_size": 32, "max_unreadable": 1.0},
        optim={"epochs": 1}, runtime={"device": "cpu", "threads": 1},
    )  # fmt: skip
    saved = json.loads((out / "config.json").read_text())["config"]
    assert saved["data"]["image_size"] == 32 and saved["data"]["blur_sigma"] == [0.014, 0.286]
    assert DataConfig(train=images).image_size == 224

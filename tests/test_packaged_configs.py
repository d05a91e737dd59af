"""The packaged configurations: found by name, complete, and those of the published runs."""

from pathlib import Path

import pytest

from mgd_ssl import config as config_module
from mgd_ssl.classify_settings import ClassifyConfig
from mgd_ssl.command_line import find_config, parse
from mgd_ssl.config import PretrainConfig
from mgd_ssl.errors import UserError
from mgd_ssl.settings import Settings
from mgd_ssl.tasks.detection.config import DetectConfig
from tests.given import parsed

CONFIGS = Path(config_module.__file__).parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_packaged_configs_load_and_are_found_by_name(path: Path) -> None:
    models: list[tuple[type[Settings], list[str]]] = [
        (DetectConfig, ["--data.root", "coco"]),
        (PretrainConfig, ["--data.train", "photos"]),
        (ClassifyConfig, ["--data.train", "photos", "--data.val", "photos"]),
    ]
    model, sources = models[0 if path.stem.startswith("coco") else 1 if "moco" in path.read_text() else 2]
    assert isinstance(parse(model, ["--config", str(path), "--out", "run", *sources], "mgd-ssl"), model)
    assert find_config(path.stem) == find_config(f"configs/{path.name}") == path


@pytest.mark.parametrize(
    ("name", "student"),
    [
        ("imagenet_r50_r18_mgd", "resnet18"),
        ("imagenet_r50_r34_mgd", "resnet34"),
        ("imagenet_r18_moco", "resnet18"),
        ("imagenet_r34_moco", "resnet34"),
    ],
)
def test_published_runs_have_their_published_settings(name: str, student: str) -> None:
    config = parsed("--config", name)
    optim, moco = config.optim, config.moco
    assert config.student == student
    assert (optim.lr, optim.batch_size, optim.epochs, optim.warmup_epochs) == (0.03, 256, 200, 3)
    assert (moco.queue_size, moco.temperature, moco.momentum, moco.dim) == (65536, 0.2, 0.999, 128)


def test_config_that_does_not_exist_lists_the_packaged_ones() -> None:
    with pytest.raises(UserError, match=r"did you mean 'imagenet_r50_r18_mgd'\?.*imagenet_r18_moco"):
        find_config("imagenet_r50_r18_mdg")
    with pytest.raises(UserError, match=r"no config file 'nowhere/imagenet_r18_moco.toml'"):
        find_config("nowhere/imagenet_r18_moco.toml")


def test_a_file_of_the_user_goes_before_a_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imagenet_r18_moco").write_text("seed = 5")
    monkeypatch.chdir(tmp_path)
    assert parsed("--config", "imagenet_r18_moco").seed == 5

"""The recipes of terms are those of their sources."""

from typing import Any

import pytest

from mgd_ssl.command_line import find_config, load_toml
from mgd_ssl.config import PretrainConfig
from mgd_ssl.setting_keys import flattened
from mgd_ssl.settings import incomplete

# what all of them have: batch 256, SGD with momentum 0.9 and weight decay 1e-4, no warm-up, embeddings of 128
COMMON = {
    "student": "resnet18", "teacher_arch": "resnet50", "moco.dim": 128, "optim.batch_size": 256, "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4, "optim.warmup_epochs": 0, "data.image_size": 224, "data.blur_sigma": [0.1, 2.0],
    "mgd.weight": 0, "terms.seed.weight": 0, "terms.disco.weight": 0, "terms.simreg.weight": 0,
    "terms.compress.weight": 0, "terms.bingo.weight": 0, "moco.weight": 0, "optim.milestones": [],
}  # fmt: skip
STRONG = {"data.recipe": "v2", "data.crop_scale": [0.2, 1.0]}  # MoCo v2's views
SOURCES: dict[str, dict[str, Any]] = {
    # https://github.com/jacobswan1/SEED at f236cac: opts.py:144-151, utils.py:89-101, builder.py:39-41
    "imagenet_r50_r18_seed": {
        **STRONG, "terms.seed.weight": 1, "terms.seed.queue_size": 65536, "terms.seed.student_temperature": 0.2,
        "terms.seed.teacher_temperature": 1e-4, "moco.head_width": None, "optim.epochs": 200, "optim.lr": 0.03,
        "optim.lr_schedule": "epoch",
    },
    # https://github.com/Yuting-Gao/DisCo-pytorch at 1d732c8: builder_kq_mse_largeembedding_2048.py:181-229,
    # main.py:434-442; the sum over the 32 images of a GPU is 32 times their mean
    "imagenet_r50_r18_disco": {
        **STRONG, "moco.weight": 1, "moco.queue_size": 65536, "moco.temperature": 0.2, "moco.momentum": 0.999,
        "moco.head_width": 2048, "terms.disco.weight": 32, "terms.disco.both_views": True, "optim.epochs": 200,
        "optim.lr": 0.03, "optim.lr_schedule": "epoch",
    },
    # https://github.com/UCDvision/simreg at 2e974e7: simreg.py:96-131, mlp_arch.py:5-26, run.sh
    "imagenet_r50_r18_simreg": {
        "data.recipe": "weak", "data.crop_scale": [0.2, 1.0], "terms.simreg.weight": 1, "terms.simreg.layers": 4,
        "optim.epochs": 130, "optim.lr": 0.05, "optim.lr_schedule": "epoch",
    },
    # https://github.com/UMBCvision/CompRess at c5e57ed: compress_loss.py:67-183
    "imagenet_r50_r18_compress": {
        "data.recipe": "weak", "data.crop_scale": [0.08, 1.0], "terms.compress.weight": 1,
        "terms.compress.queue_size": 128_000, "terms.compress.temperature": 0.04, "optim.epochs": 130,
        "optim.lr": 0.01, "optim.milestones": [90, 120], "optim.lr_factor": 0.2,
    },
    # https://github.com/haohang96/bingo at 1c632fc: builder.py:130-206, main_moco.py:106-126, 371-387
    "imagenet_r50_r18_bingo": {
        **STRONG, "terms.bingo.weight": 1, "terms.bingo.queue_size": 65536, "terms.bingo.temperature": 0.2,
        "terms.bingo.warm_epochs": 11, "moco.head_width": 2048, "optim.epochs": 200, "optim.lr": 0.03,
        "optim.lr_schedule": "epoch",
    },
}  # fmt: skip


def recipe(name: str) -> dict[str, Any]:
    with incomplete():
        return flattened(load_toml(PretrainConfig, find_config(name)).model_dump(mode="json"))


@pytest.mark.parametrize("name", SOURCES)
def test_recipe_is_that_of_its_source(name: str) -> None:
    found, wanted = recipe(name), {**COMMON, **SOURCES[name]}
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize(("name", "student"), [("best_r18", "resnet18"), ("best_r34", "resnet34")])
def test_best_recipes_are_simreg_with_mgd_that_fades_out(name: str, student: str) -> None:
    found = recipe(name)
    wanted = {**COMMON, **SOURCES["imagenet_r50_r18_simreg"], "student": student, "moco.head_width": 2048}
    wanted |= {"mgd.weight": 1e-4, "mgd.schedule": "cosine"}
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize("name", ["imagenet_r50_r18_mgd", "imagenet_r50_r34_mgd"])
def test_recipes_of_mgd_keep_its_weight_constant_and_have_no_other_term(name: str) -> None:
    found = recipe(name)
    assert (found["mgd.weight"], found["mgd.schedule"], found["mgd.balance"], found["moco.weight"]) == (
        1e-4, "constant", None, 1,
    )  # fmt: skip
    assert not any(value for key, value in found.items() if key.startswith("terms.") and key.endswith(".weight"))

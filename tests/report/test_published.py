"""Published numbers: beside runs of their recipe, apart from measured ones, and beside no others."""

import hashlib
import html
import json
from pathlib import Path
from typing import Any

import pytest

from mgd_ssl.report import published
from mgd_ssl.run.read import read_runs
from tests.report.reports import Cells, evaluate, published_run, report, table

MOCO_800 = "a04e12f8b0e44fdcac1fb4e06f33727b"


@pytest.mark.parametrize(
    ("config", "top1", "top5"),
    [
        ("imagenet_r18_moco", 52.5, 77.0),
        ("imagenet_r34_moco", 57.2, 81.5),
        ("imagenet_r50_r18_mgd", 53.6, 78.7),
        ("imagenet_r50_r34_mgd", 58.5, 82.7),
    ],
)
def test_published_numbers_stand_apart(tmp_path: Path, config: str, top1: float, top5: float) -> None:
    run = published_run(tmp_path / "run", config, optim__lr_schedule="epoch", mgd__margin="initial")
    evaluate(run, "linear", "moco", {"top1": [50.0], "top5": [75.0]}, arch=config.split("_")[-2].replace("r", "resnet"))
    page, csv = report([run], tmp_path)
    row = csv[csv["origin"] == "published"].iloc[0]
    assert (row["top1"], row["top5"]) == (top1, top5)
    assert row["source"].startswith("https://github.com/kaiyuyue/mgd")
    assert csv[csv["origin"] == "measured"]["top1"].tolist() == [50.0]
    assert csv["origin"].tolist() == ["measured", "published"]
    cells = next(row for row in Cells(page).rows if f"{top1}" in row)
    assert "published, not measured here" in cells[-1]
    assert ("its recipe is not published in full" in cells[-1]) == config.endswith("moco")
    assert "Published for the same recipe" in page


@pytest.mark.parametrize(
    ("config", "change", "why"),
    [
        ("imagenet_r18_moco", {"optim__epochs": 100}, "optim.epochs is 100, published with 200"),
        ("imagenet_r18_moco", {"optim__warmup_epochs": 5.0}, "optim.warmup_epochs is 5.0, published with 3.0"),
        ("imagenet_r18_moco", {"student": "resnet50"}, ""),
        ("imagenet_r18_moco", {"moco__queue_size": 4096}, "moco.queue_size is 4096"),
        ("imagenet_r18_moco", {"moco__head_width": 64}, "moco.head_width is 64, published with None"),
        ("imagenet_r18_moco", {"data__image_size": 112}, "data.image_size is 112"),
        ("imagenet_r18_moco", {"images": 100_000}, ""),
        ("imagenet_r18_moco", {"processes": 1}, "BatchNorm is not shuffled in one process"),
        ("imagenet_r18_moco", {"processes": None}, "number of processes is not recorded"),
        ("imagenet_r50_r18_mgd", {"teacher": "resnet101"}, "its teacher is a resnet101"),
        (
            "imagenet_r50_r18_mgd",
            {"md5": MOCO_800},
            "its teacher is MoCo v2's of 800 epochs, published with moco_v2_200ep",
        ),
        ("imagenet_r50_r34_mgd", {"md5": "0" * 32}, "its teacher is another file"),
        ("imagenet_r50_r34_mgd", {"md5": None}, "its teacher is not recorded by its MD5"),
        ("imagenet_r50_r18_mgd", {"mgd__weight": 1e-3}, "mgd.weight is 0.001, published with 0.0001"),
        ("imagenet_r50_r18_mgd", {"mgd__matching_epochs": [1]}, "mgd.matching_epochs is [1]"),
        ("imagenet_r50_r18_mgd", {"mgd__matching_epochs": []}, "mgd.matching_epochs is []"),
        ("imagenet_r50_r18_mgd", {"optim__lr": 0.06}, "optim.lr is 0.06, published with 0.03"),
    ],
)
def test_no_published_numbers_for_another_recipe(tmp_path: Path, config: str, change: dict[str, Any], why: str) -> None:
    run = published_run(tmp_path / "run", config, **change)
    assert "published" not in set(table([run])["origin"])
    told = published.notes(read_runs([run]))
    assert len(told) == (1 if why else 0) and all(why in note for note in told)


def test_one_process_with_split_norms_follows_the_recipe_and_the_page_says_why_others_do_not(tmp_path: Path) -> None:
    split = published_run(tmp_path / "split", "imagenet_r50_r18_mgd", processes=1, moco__bn_splits=8)
    other = published_run(tmp_path / "other", "imagenet_r50_r18_mgd", md5=MOCO_800)
    page, csv = report([split, other], tmp_path)
    assert csv[csv["origin"] == "published"]["runs"].tolist() == ["split"]
    assert "other has no published number beside it: its teacher is MoCo v2's of 800 epochs" in html.unescape(page)


def test_a_run_records_the_md5_of_its_teacher(trained: Path) -> None:
    saved = json.loads((trained / "mgd" / "config.json").read_text())["teacher"]
    assert saved["md5"] == hashlib.md5((trained / "teacher" / "encoder.pt").read_bytes()).hexdigest()


def test_the_unguided_recipe_does_not_ask_for_settings_of_the_matching(tmp_path: Path) -> None:
    csv = table([published_run(tmp_path / "run", "imagenet_r18_moco", mgd__weight=0.5)])
    assert set(csv["origin"]) == {"published"}

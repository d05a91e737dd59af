"""The report on classifications: numbers of their files, published errors apart, the worst classes by hand."""

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mgd_ssl.config import ClassifyConfig
from mgd_ssl.report.classes import CONFUSION, class_reports, class_row, worst_classes
from mgd_ssl.report.page import write_report
from mgd_ssl.report.published_errors import RESULTS, PublishedErrors
from mgd_ssl.report.tables import rows
from mgd_ssl.report.verdict import verdicts
from mgd_ssl.run.read import Run, read_runs
from mgd_ssl.settings import incomplete

COUNTS = np.array([[5, 0, 0, 0], [1, 2, 2, 0], [4, 0, 1, 0], [0, 0, 0, 0]])
NAMES = ["ash", "birch", "cedar", "(output 3)"]
ROWS: list[dict[str, Any]] = [
    {"kind": "train", "step": 4, "epoch": 1.0, "loss": 2.0, "cross_entropy": 1.5, "kd": 0.5, "accuracy": 0.25,
     "lr": 0.1, "images_per_second": 9.0, "data_wait": 0.5},
    {"kind": "validation", "step": 4, "epoch": 1, "top1": 70.0, "top5": 90.0, "best_top1": 70.0, "best_top5": 90.0},
    {"kind": "validation", "step": 8, "epoch": 2, "top1": 60.0, "top5": 95.0, "best_top1": 70.0, "best_top5": 90.0},
]  # fmt: skip


def classification(folder: Path, settings: dict[str, Any], teacher: str | None = None, num_images: int = 40) -> Path:
    """The folder of a finished run."""
    folder.mkdir(parents=True)
    with incomplete():
        config = ClassifyConfig(**settings).model_dump(mode="json")
    config |= {"out": str(folder), "data": config["data"] | {"train": "gone/train", "val": "gone/val"}}
    described = {
        "task": "classification", "config": config, "environment": {}, "student_weights": None,
        "data": {"num_images": num_images, "fingerprint": "f" * 64},
        "teacher": teacher and {"arch": teacher, "sha256": "a" * 64, "prefix": "", "md5": "b" * 32},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "result.json").write_text(json.dumps({"steps": 8}))
    np.savez(folder / CONFUSION, counts=COUNTS, names=np.array(NAMES), epoch=np.array(2))
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """A student alone and one taught by KD."""
    optim = {"epochs": 2, "batch_size": 10}
    base: dict[str, Any] = {"student": "thin_resnet10", "optim": optim}
    taught = base | {"kd": {"weight": 1.0}, "mgd": {"weight": 0.0}}
    return [
        classification(tmp_path / "alone", base),
        classification(tmp_path / "kd", taught, "thin_resnet14"),
    ]


def test_the_table_says_which_epoch_a_number_is_of(pair: list[Path], tmp_path: Path) -> None:
    page, table, _ = write_report(pair, tmp_path / "report.html")
    frame = pd.read_csv(table)
    assert sorted(frame["method"]) == ["supervised", "supervised", "supervised + KD", "supervised + KD"]
    last = frame[frame["protocol"].str.endswith("last epoch")]
    best = frame[frame["protocol"].str.endswith("best epoch, chosen on the same images")]
    assert last["top1"].tolist() == [60.0, 60.0] and last["top5"].tolist() == [95.0, 95.0]
    assert best["top1"].tolist() == [70.0, 70.0] and best["top5"].tolist() == [90.0, 90.0]
    assert set(frame["origin"]) == {"measured"} and set(frame["evaluation"]) == {"classification"}
    told = html.unescape(page.read_text())
    for words in ("Validation", "Cross entropy", "Distillation of logits", "Training accuracy", "worst classes"):
        assert words in told
    assert "Queries nearest" not in told and "No views of" not in told


def test_averaged_weights_are_named(tmp_path: Path) -> None:
    run = classification(tmp_path / "ema", {"student": "thin_resnet10", "optim": {"ema": 0.99, "batch_size": 10}})
    table = rows(read_runs([run]))
    assert {row.protocol.rpartition(", ")[2] for row in table} == {"averaged weights"}


def test_the_verdict_names_what_taught(pair: list[Path]) -> None:
    sentence, *_ = verdicts(rows(read_runs(pair)))
    assert "60.0 % top-1 (classification) with KD (kd) and 60.0 % without (alone)" in sentence


def test_the_worst_classes_by_hand(pair: list[Path]) -> None:
    assert worst_classes(COUNTS) == [2, 1, 0]  # the one without images is not judged
    assert class_row(COUNTS, NAMES, 1) == ("birch", 5, 40.0, "cedar (2), ash (1)")
    assert class_row(COUNTS, NAMES, 2) == ("cedar", 5, 20.0, "ash (4)")
    assert class_row(COUNTS, NAMES, 0) == ("ash", 5, 100.0, "")
    notes: list[str] = []
    (first, second) = class_reports(read_runs(pair), notes)
    assert [row.name for row in first.worst] == ["cedar", "birch", "ash"] and first.worst == second.worst
    assert first.note == "Validation after epoch 2, 15 images of 3 classes." and not notes


@pytest.mark.parametrize("damage", ["missing", "bytes", "shape"])
def test_damaged_confusions_are_told(pair: list[Path], tmp_path: Path, damage: str) -> None:
    path = pair[0] / CONFUSION
    if damage == "missing":
        path.unlink()
    elif damage == "bytes":
        path.write_bytes(path.read_bytes()[:100])
    else:
        np.savez(path, counts=COUNTS[:2], names=np.array(NAMES), epoch=np.array(2))
    page, *_ = write_report(pair[:1], tmp_path / "report.html")
    assert f"No classes of alone: {CONFUSION} is missing or damaged" in html.unescape(page.read_text())


IMAGES = {"imagenet": 1_281_167, "cub200": 5_994}


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.config)
def test_published_errors_stand_apart(result: PublishedErrors, tmp_path: Path) -> None:
    """Beside a run of their recipe, and beside no other; they are those of the config's comment."""
    recipe = result.recipe.model_dump(mode="json", exclude={"out"})
    recipe["data"] = {key: value for key, value in recipe["data"].items() if key not in ("train", "val")}
    images = IMAGES[result.config.partition("_")[0]]
    run = classification(tmp_path / "run", recipe, recipe["teacher_arch"], images)
    (read,) = read_runs([run])
    (row,) = [row for row in rows([read]) if row.is_published]
    assert row.top1 is not None and row.top5 is not None
    assert (row.top1.mean, row.top5.mean) == pytest.approx((100 - result.top1_error, 100 - result.top5_error))
    assert row.state.startswith("published errors") and "best epoch" in row.protocol
    comment = (Path(__file__).parents[2] / "mgd_ssl" / "configs" / f"{result.config}.toml").read_text()
    assert f"{result.top1_error} / {result.top5_error}" in re.sub(r"\s*\n#\s*", " ", comment)
    changes: list[dict[str, Any]] = [{"data": read.data | {"num_images": 1000}}, {"config": changed(read)}]
    for change in changes:
        assert not [row for row in rows([dataclasses.replace(read, **change)]) if row.is_published]


def changed(run: Run) -> dict[str, Any]:
    """Its settings with another learning rate."""
    return run.config | {"optim": run.config["optim"] | {"lr": 0.3}}

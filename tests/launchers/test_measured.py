"""The table of runs shows the number that counts for each task; a report leaves detectors to their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from launchers.runs import main
from mgd_ssl.errors import UserError
from mgd_ssl.run.read import read_runs

TRAIN = {"kind": "train", "epoch": 1.0, "loss": 0.5, "lr": 0.1, "images_per_second": 9.0, "data_wait": 0.1}
KNN = {"kind": "knn", "top1": 43.25, "top5": 60.0, "protocol": "k-NN"}
AP = {"kind": "average_precision", "AP": 12.345, "AP50": 30.0}


def written(folder: Path, task: str, *rows: dict[str, Any]) -> Path:
    """A run's folder with rows of metrics."""
    folder.mkdir(parents=True)
    config = {
        "student": "resnet18", "seed": 0, "data": {}, "mgd": {"weight": 0}, "optim": {"epochs": 1, "batch_size": 2},
    }  # fmt: skip
    saved = {"config": config, "data": {"num_images": 4, "fingerprint": "f"}, "teacher": None, "environment": {}}
    (folder / "config.json").write_text(json.dumps({"task": task, **saved}))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps({'step': 1, **row})}\n" for row in rows))
    return folder


def test_every_task_shows_its_own_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "a", "pretraining", KNN | {"top1": 41.5}, TRAIN, KNN)
    best = {"best_top1": 72.0, "best_top5": 91.0}
    written(tmp_path / "b", "classification", TRAIN, {**best, "kind": "validation", "epoch": 1, "top1": 71, "top5": 90})
    written(tmp_path / "c", "detection", TRAIN, AP)
    written(tmp_path / "d", "detection", TRAIN, AP | {"AP": None})
    written(tmp_path / "e", "pretraining", TRAIN)
    assert main([str(tmp_path), "--json-lines"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["measured"], row["value"]) for row in told] == [
        ("k-NN top-1", 43.25), ("top-1", 71), ("AP", 12.345), ("AP", None), ("", None),
    ]  # fmt: skip
    assert main([str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][4:6] == ["measured", "%"]
    assert [line[4:] for line in lines[1:4]] == [
        ["k-NN", "top-1", "43.25", "9", "0"], ["top-1", "71.00", "9", "0"], ["AP", "12.35", "9", "0"],
    ]  # fmt: skip


def test_a_report_of_a_folder_leaves_its_detectors_out(tmp_path: Path) -> None:
    detector = written(tmp_path / "runs" / "d", "detection", AP)
    sentence = f"{detector} holds a detector (AP 12.3): mgd-ssl detect --evaluate {detector} writes its report"
    for alone in (tmp_path / "runs", detector):
        with pytest.raises(UserError) as refused:
            read_runs([alone])
        assert str(refused.value) == sentence
    told: list[str] = []
    student = written(tmp_path / "runs" / "s", "pretraining", KNN)
    assert [run.folder for run in read_runs([tmp_path / "runs"], told.append)] == [student] and told == [sentence]

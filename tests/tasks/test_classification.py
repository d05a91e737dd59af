"""`mgd-ssl classify`: runs of seconds, continued, in two processes, evaluated and begun with by their folder."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgd_ssl.cli import main
from mgd_ssl.errors import Interrupted
from mgd_ssl.files import read_json
from mgd_ssl.networks.backbones import trunk
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.tasks.classification import Classification
from mgd_ssl.tasks.classify import classify
from tests.tasks.classify_runs import guided, recomputed, settings

SPEED = ("seconds", "images_per_second", "data_wait")  # what differs between two equal runs


def state(run: Path) -> dict[str, Any]:
    newest = sorted((run / "checkpoints").glob("step_*.pt"))[-1]
    content: dict[str, Any] = torch.load(newest, weights_only=True)
    return {key: value for key, value in content.items() if key not in ("config", "metrics_bytes")}


def rows(run: Path) -> list[str]:
    parsed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({key: value for key, value in row.items() if key not in SPEED}) for row in parsed]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# whole runs


MIXED = {"epochs": 3, "batch_size": 16, "lr": 0.01, "mixup": 0.4, "ema": 0.7}


@pytest.mark.parametrize("student", ["thin_resnet10", "mobilenet_v2"])
def test_a_stopped_run_goes_on_bit_for_bit(
    photographs: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: str
) -> None:
    # MGD, KD, mixup and an average of the weights; the other one has dropout
    how = guided(teacher, optim=MIXED) if student == "thin_resnet10" else {}
    classify(**settings(photographs, tmp_path / "whole", student=student, **how))
    with monkeypatch.context() as patch:
        inputs = Classification.inputs

        def interrupted(self: Classification, batch: Any, step: int) -> tuple[Any, ...]:
            if step == 2:
                signal.raise_signal(signal.SIGTERM)
            return inputs(self, batch, step)

        patch.setattr(Classification, "inputs", interrupted)
        with pytest.raises(Interrupted):
            classify(**settings(photographs, tmp_path / "stopped", student=student, **how))
    result = classify(**settings(photographs, tmp_path / "stopped", student=student, **how))
    assert same(state(tmp_path / "stopped"), state(tmp_path / "whole"))
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert classify(**settings(photographs, tmp_path / "stopped", student=student, **how)) == result


def test_the_accuracy_is_that_of_the_student_left_behind(photographs: Path, teacher: Path, tmp_path: Path) -> None:
    result = classify(**settings(photographs, tmp_path / "run", **guided(teacher)))
    assert recomputed(photographs, Path(result.encoder)) == pytest.approx(result.validation["top1"])
    told = [row for row in map(eval_row, rows(tmp_path / "run")) if row["kind"] == "validation"]
    assert [row["epoch"] for row in told] == [1, 2, 3]
    best = max(told, key=lambda row: row["top1"])
    assert result.best == {key: best[key] for key in ("epoch", "top1", "top5")}
    counts = np.load(tmp_path / "run" / "confusion.npz")["counts"]
    assert counts.sum(1).tolist() == [5, 5, 5]
    assert 100 * np.trace(counts) / 15 == pytest.approx(result.validation["top1"])


def eval_row(line: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(line)
    return row


def test_two_processes(photographs: Path, teacher: Path, tmp_path: Path) -> None:
    args = [
        *("classify", "--out", tmp_path / "run", "--student", "thin_resnet10", "--teacher", teacher, "--kd.weight", 1),
        *("--data.train", photographs / "train", "--data.val", photographs / "val", "--data.image-size", 32),
        *("--data.workers", 0, "--optim.epochs", 2, "--optim.batch-size", 16, "--optim.lr", 0.01),
        *("--mgd.matching-images", 15, "--runtime.threads", 1, "--runtime.device", "cpu"),
    ]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    env = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "mgd_ssl.cli", *map(str, args)],
            env=env | {"MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    result = read_json(tmp_path / "run" / "result.json")
    assert result["steps"] == 4
    # ranks classify parts of an odd number of images, with the statistics that are saved
    assert recomputed(photographs, tmp_path / "run" / "encoder.pt") == pytest.approx(result["validation"]["top1"])


def test_a_run_is_evaluated_and_begun_with_by_its_folder(photographs: Path, teacher: Path, tmp_path: Path) -> None:
    weights = torch.load(teacher / "encoder.pt", weights_only=True)
    seen: dict[str, Any] = {}

    def first(self: Classification, batch: Any, step: int) -> tuple[Any, ...]:
        if not seen:
            seen.update({name: value.clone() for name, value in self.module.student.state_dict().items()})
        return inputs(self, batch, step)

    inputs = Classification.inputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classification, "inputs", first)
        how = {"student": None, "student_weights": teacher, "optim": {"epochs": 1}}
        classify(**settings(photographs, tmp_path / "tuned", **how))
    assert same(seen, weights)  # the classifier too, as there are as many classes
    backbone, report = load_backbone(teacher / "encoder.pt")
    assert report.arch == "thin_resnet14" and report.classes is None
    images = torch.randn(2, 3, 32, 32)
    whole = load_backbone(teacher / "encoder.pt", with_classifier=True)[0]
    assert torch.equal(trunk(whole.eval())(images), backbone.eval()(images))
    assert main(["runs", str(teacher)]) == 0

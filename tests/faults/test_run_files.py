"""Damaged files of runs and hostile names: told in sentences that do not act on a terminal."""

import contextlib
import io
import json
import logging
import math
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launchers import runs as runs_command
from mgd_ssl.config import PretrainConfig
from mgd_ssl.errors import UserError, exit_code
from mgd_ssl.report.figures import curves
from mgd_ssl.report.matching_figures import matching_pictures
from mgd_ssl.report.sizes import size_rows
from mgd_ssl.report.tables import rows
from mgd_ssl.report.verdict import verdicts
from mgd_ssl.run.log import RunLog, logger
from mgd_ssl.run.read import read_runs
from tests.faults.sentences import CONTROL, refusal

# what is shown

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\r\nmgd-ssl: all is well\u202e\x9b"


def calm(text: str) -> bool:
    """Whether nothing in a text acts on a terminal."""
    return not set(text) & (set(CONTROL) - {"\n"})


def test_messages_do_not_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise UserError(f"{HOSTILE} is no folder")

    assert exit_code(fail) == 2
    told = capsys.readouterr().err
    assert calm(told) and told.count("\n") == 1
    assert r"a\x1b[2J\x1b]0;title\x07b\r\nmgd-ssl: all is well\u202e\x9b is no folder" in told


def test_the_log_does_not_act_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, 1, 0):
        logger.warning("%s is unreadable, %d %%", HOSTILE, 100)
        logger.log(logging.INFO, "100 % sure")
    for told in (capsys.readouterr().err, (tmp_path / "log.txt").read_text()):
        assert calm(told) and r"all is well\u202e\x9b is unreadable, 100 %" in told
        assert "100 % sure" in told and len(told.splitlines()) == 2


# damaged files of runs


def write_run(folder: Path) -> None:
    """A small finished run as its files tell of it."""
    folder.mkdir(parents=True)
    train = {"kind": "train", "step": 2, "epoch": 1.0, "loss": 1.0, "contrastive": 1.0, "mgd": 0.0,
             "accuracy": 0.5, "lr": 0.03, "images_per_second": 9.0, "data_wait": 0.1}  # fmt: skip
    knn = {"kind": "knn", "step": 2, "epoch": 1.0, "top1": 50.0, "top5": 90.0, "random_top1": 9.0, "random_top5": 20.0,
           "protocol": "k-NN k=1"}  # fmt: skip
    matching = {"kind": "matching", "step": 0, "epoch": 0, "stage1_cost_before": None, "stage1_cost_after": 1.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (matching, train, knn)))
    saved = {
        "config": PretrainConfig(out=folder, data={"train": "photos"}, optim={"epochs": 1, "batch_size": 4}).model_dump(
            mode="json"
        ),
        "data": {"num_images": 8, "fingerprint": "f" * 64},
        "teacher": {"arch": "thin_resnet14", "sha256": "0" * 64, "prefix": ""},
        "environment": {"torch": "2"},
    }
    (folder / "config.json").write_text(json.dumps(saved))
    (folder / "result.json").write_text(json.dumps({"out": str(folder), "steps": 2, "epochs": 1, "knn": {}}))
    evaluation = {"format": 1, "kind": "linear", "name": "moco", "protocol": "p", "checkpoint": "encoder.pt",
                  "arch": "resnet18", "values": {"top1": [50.0], "top5": [75.0]}}  # fmt: skip
    (folder / "evaluation_linear_moco.json").write_text(json.dumps(evaluation))


def places(content: Any) -> list[tuple[Any, Any]]:
    """`(container, key)` of everything inside some JSON."""
    found: list[tuple[Any, Any]] = []
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        found.append((content, key))
        found += places(value) if isinstance(value, dict | list) else []
    return found


def damaged(text: str, generator: random.Random) -> bytes:
    """A file cut, with flipped bits, or with a value of another kind in it."""
    how = generator.randrange(4)
    if how == 0:
        return text.encode()[: generator.randrange(len(text))]
    if how == 1:
        content = bytearray(text.encode())
        for _ in range(3):
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        return bytes(content)
    lines = text.strip().split("\n")
    number = generator.randrange(len(lines))
    row = json.loads(lines[number])
    container, key = generator.choice(places(row))
    if how == 2 and isinstance(container, dict):
        del container[key]
    else:
        strange: tuple[Any, ...] = (None, [], {}, "x", -1, 0, 1.5, True, 10**400, math.nan, [[]], {"a": 1}, HOSTILE)
        container[key] = generator.choice(strange)
    lines[number] = json.dumps(row)
    return ("\n".join(lines) + "\n").encode()


FILES = ["config.json", "result.json", "metrics.jsonl", "evaluation_linear_moco.json"]


@pytest.mark.parametrize("file", FILES)
def test_damaged_files_of_a_run_are_named(file: str, rounds: int, tmp_path: Path) -> None:
    write_run(tmp_path / "whole")
    text = (tmp_path / "whole" / file).read_text()
    write_run(tmp_path / "damaged")
    for case in range(60 * rounds):
        (tmp_path / "damaged" / file).write_bytes(damaged(text, random.Random(case)))
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
            code = exit_code(lambda: runs_command.main([str(tmp_path), "--json-lines"]))
        assert code == 0, case  # the other run is told of
        told = {row["run"]: row for row in map(json.loads, out.getvalue().splitlines())}
        assert told["whole"]["state"] == "finished", case
        if told.get("damaged", {}).get("state") == "damaged":
            assert file in told["damaged"]["last_line"], case
        if said := refusal(partial(look, tmp_path / "damaged", pictures=case % 30 == 0)):
            named = str(tmp_path / "damaged" / file)
            assert named in said or "holds no run" in said or "without any measurement" in said, case


def look(folder: Path, pictures: bool) -> None:
    """Read a run as the report does."""
    runs = read_runs([folder])
    table = rows(runs)
    verdicts(table)
    size_rows(runs)
    if pictures:
        curves(runs)
        matching_pictures(runs[0])


@pytest.mark.parametrize("file", FILES[:3])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000, b"null", b'{"a": 1}\n{}\n[]\n\n{"b'])
def test_damaged_files_do_not_end_in_a_traceback(file: str, content: bytes, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(content)
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        assert exit_code(lambda: len(read_runs([tmp_path / "run"])) - 1) in (0, 2)
        exit_code(lambda: runs_command.main([str(tmp_path / "run")]))
    assert "Traceback" not in said.getvalue()

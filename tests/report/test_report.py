"""The report as a command: which runs it takes, damaged runs, and an `--out` that cannot be written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mgd_ssl import cli
from mgd_ssl.data.pack import pack
from mgd_ssl.errors import UserError
from mgd_ssl.report import page
from mgd_ssl.report.page import write_report
from mgd_ssl.run.read import read_runs
from tests.report.reports import Make

# errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder, _: folder / "nowhere", "is not a folder"),
        (lambda folder, _: folder, "holds no run"),
    ],
)
def test_no_run(trained: Path, tmp_path: Path, make: Callable[[Path, Path], Path], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_report([trained / "moco", make(tmp_path, trained)], tmp_path / "out" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_runs_are_taken_as_by_the_runs_command(
    trained: Path, copied: Make, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `pack` and `linear` leave beside them is no run, and one that has not begun is left out."""
    folder = tmp_path / "all"
    folder.mkdir()
    for name in ("moco", "mgd"):
        shutil.copytree(trained / name, folder / name)
    pack(images=image_folder / "val", out=folder / "packed", workers=0)
    (folder / "linear_moco_seed0").mkdir()
    (folder / "linear_moco_seed0" / "config.json").write_text('{"config": {"protocol": {}, "seed": 0}}')
    (folder / "notes.txt").touch()
    assert [run.name for run in read_runs([folder])] == ["mgd", "moco"]
    assert [run.name for run in read_runs([folder / "moco", folder])] == ["moco", "mgd"]
    capsys.readouterr()
    assert cli.main(["runs", str(folder), "--json-lines"]) == 0
    assert [json.loads(line)["run"] for line in capsys.readouterr().out.splitlines()] == ["mgd", "moco"]

    shutil.copytree(trained / "moco", folder / "begun")
    (folder / "begun" / "metrics.jsonl").unlink()
    told: list[str] = []
    assert [run.name for run in read_runs([folder], told.append)] == ["mgd", "moco"]
    assert told == [f"{folder / 'begun'} holds a run without any measurement yet: it is left out"]
    with pytest.raises(UserError, match=r"begun holds a run without any measurement yet: wait"):
        read_runs([folder / "begun", folder])
    with pytest.raises(UserError, match=r"packed holds no run"):
        read_runs([folder / "packed"])


def damage(folder: Path, file: str, content: str) -> Path:
    (folder / file).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", "", "without any measurement yet"),
        ("metrics.jsonl", '{"kind": "train"}\n{"kind": "knn"}\n', "line 1 of .*metrics.jsonl is damaged"),
        ("metrics.jsonl", 'nonsense\n{"kind": "x", "step": 1}\n', "line 1 of .*metrics.jsonl is damaged"),
        ("config.json", "{", "config.json is damaged"),
        ("config.json", "[]", "config.json is damaged"),
        ("evaluation_linear_x.json", "{}", "evaluation_linear_x.json is no evaluation"),
        ("result.json", "", "result.json is damaged"),
        ("result.json", "{}", "result.json is damaged or no run's: remove it, the same command writes it anew"),
    ],
)
def test_damaged_runs(copied: Make, tmp_path: Path, file: str, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_report([damage(copied("moco", "run"), file, content)], tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file/report.html", "cannot be written"),
        ("folder.html", "is a folder"),
        ("report.md", "ends in .html"),
        ("x" * 300 + ".html", "cannot be written"),
    ],
)
def test_an_out_that_cannot_be_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.html").mkdir()
    monkeypatch.setattr(page, "render", lambda runs, table: "a page")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        write_report([trained / "moco"], tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_nothing_half_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "render", lambda runs, table: "a page")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_report([trained / "moco"], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_the_command(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "render", lambda runs, table: "a page")
    out = tmp_path / "report.html"
    assert cli.main(["report", str(trained / "moco"), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert out.is_file()
    assert cli.main(["report"]) == 2
    assert "no run is given" in capsys.readouterr().err

"""The account of files that are passed over."""

import json
import logging
import re
from pathlib import Path

import pytest

from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.images import Unreadable
from mgd_ssl.data.unreadable import TOLD, SkippedFiles
from mgd_ssl.errors import TrainingError


def names(count: int) -> list[str]:
    return [f"{i:03d}.jpg" for i in range(count)]


def entries(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def account(path: Path, count: int = 100, max_share: float = 0.5, ignored: tuple[str, ...] = ()) -> SkippedFiles:
    return SkippedFiles(path, ImageList(Path("photos"), names(count), ignored), max_share)


def test_a_file_is_told_and_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    skipped = account(tmp_path / "skipped.jsonl")
    with caplog.at_level(logging.WARNING, logger="mgd_ssl"):
        for _ in range(3):
            skipped.note([Unreadable("007.jpg", "OSError: truncated"), Unreadable("007.jpg", "OSError: truncated")])
            skipped.share()
    assert [record.getMessage() for record in caplog.records] == [
        "unreadable image 007.jpg (OSError: truncated), another one takes its place"
    ]
    assert entries(skipped.path) == [{"file": "007.jpg", "why": "OSError: truncated"}]
    assert skipped.known == {"007.jpg"}


def test_a_reopened_account_knows_what_was_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "skipped.jsonl"
    first = account(path)
    first.note([Unreadable("001.jpg", "bad")])
    first.share()
    caplog.clear()

    second = account(path)
    with caplog.at_level(logging.WARNING, logger="mgd_ssl"):
        second.note([Unreadable("001.jpg", "bad")])
        second.share()
    assert not caplog.records
    assert second.known == {"001.jpg"} and len(entries(path)) == 1


def test_only_the_first_few_files_are_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    skipped = account(tmp_path / "skipped.jsonl")
    with caplog.at_level(logging.WARNING, logger="mgd_ssl"):
        for part in (names(30)[:3], names(30)[3:]):
            skipped.note([Unreadable(name, "bad") for name in part])
            skipped.share()
    assert len(caplog.records) == TOLD
    assert [entry["file"] for entry in entries(skipped.path)] == names(30)


def test_ignored_files_are_listed_once_and_do_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "skipped.jsonl"
    with caplog.at_level(logging.WARNING, logger="mgd_ssl"):
        account(path, ignored=("list.txt", "a/notes.md"))
        reopened = account(path, max_share=0.0, ignored=("list.txt", "a/notes.md"))
    assert [entry["file"] for entry in entries(path)] == ["list.txt", "a/notes.md"]
    assert len(caplog.records) == 1
    assert "2 files without an image's extension" in caplog.text and "list.txt" in caplog.text
    assert not reopened.known
    reopened.share()


def test_no_file_is_written_where_nothing_is_skipped(tmp_path: Path) -> None:
    skipped = account(tmp_path / "skipped.jsonl", max_share=0.0)
    skipped.note([])
    skipped.share()
    assert not skipped.path.exists()


def test_too_large_a_share_stops_with_the_numbers(tmp_path: Path) -> None:
    skipped = account(tmp_path / "skipped.jsonl", count=20, max_share=0.1)
    skipped.note([Unreadable(name, "bad") for name in names(2)])
    skipped.share()
    skipped.note([Unreadable("010.jpg", "bad")])
    with pytest.raises(TrainingError, match=r"3 of 20 images \(15.0%\).*data.max_unreadable = 0.1: mend") as error:
        skipped.share()
    assert str(skipped.path) in str(error.value)
    assert len(entries(skipped.path)) == 3  # listed, so that they can be mended


def test_the_limit_is_told_by_the_name_the_command_knows_it_by(tmp_path: Path) -> None:
    skipped = SkippedFiles(
        tmp_path / "skipped.jsonl", ImageList(Path("photos"), names(20), ()), 0.1, "--max-unreadable"
    )
    skipped.note([Unreadable(name, "bad") for name in names(3)])
    with pytest.raises(TrainingError, match=r"more than --max-unreadable = 0.1: mend the files"):
        skipped.share()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", r"skipped.jsonl is damaged \(it is empty\): the files it no longer names are noted again when they are"),
        (b'{"file": "001.jpg", "why": "bad"}\n{"file": 7, "why": "bad"}\n{"fi\xff\n', r"is damaged \(2 of 3 lines\)"),
    ],
)
def test_a_damaged_account_is_told_and_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, told: str
) -> None:
    path = tmp_path / "skipped.jsonl"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="mgd_ssl"):
        skipped = account(path, ignored=("a.txt",))
    [record] = caplog.records
    assert re.search(told, record.getMessage())
    assert [entry["file"] for entry in entries(path)] == ["a.txt", "001.jpg"][: 2 if content else 1]
    assert skipped.known == ({"001.jpg"} if content else set())
    caplog.clear()
    account(path, ignored=("a.txt",))
    assert not caplog.records


@pytest.mark.parametrize("cut", [1, 5, 12, 20])
def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "skipped.jsonl"
    first = account(path)
    first.note([Unreadable("001.jpg", "bad"), Unreadable("{2}.jpg", "bad}")])
    first.share()
    path.write_bytes(path.read_bytes()[:-cut])

    second = account(path)
    assert second.known == {"001.jpg"}
    second.note([Unreadable("003.jpg", "bad")])
    second.share()
    assert account(path).known == {"001.jpg", "003.jpg"}
    assert len(entries(path)) == 2

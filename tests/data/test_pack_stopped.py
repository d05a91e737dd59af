"""`mgd-ssl pack` killed, stopped, damaged or on a full disk: it goes on and ends alike."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgd_ssl import Interrupted, TrainingError, UserError
from mgd_ssl.data.pack import pack
from mgd_ssl.data.packing import Packing
from mgd_ssl.data.shard_scan import scan_shard
from mgd_ssl.data.sources import open_images
from mgd_ssl.run.log import logger
from tests.data.packs import left_by, settings
from tests.runs import ended, processes

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def die_at(count: int, settings: dict[str, Any]) -> None:
    """Pack, and be killed when the file or folder number `count` (from 1) is made durable, half of it lost."""
    fsync, seen = os.fsync, []

    def killed(descriptor: int) -> None:
        seen.append(descriptor)
        if len(seen) == count:
            if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = killed  # type: ignore[assignment]
    pack(**settings)


def test_a_pack_killed_anywhere_ends_like_one_that_was_not(
    photos: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    for count in (1, 2, 3, 5, 7, 8, 9, 14, 16, 20, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34):
        out = tmp_path / f"killed{count}"
        process = processes.Process(target=die_at, args=(count, settings(photos, out)))
        process.start()
        code = ended(process)
        finished = sorted(out.glob("shard-*.tar"))
        for shard in finished:
            assert shard.read_bytes() == reference[shard.name]
        assert code == (-signal.SIGKILL if count <= 32 else 0)
        times = {path: path.stat().st_mtime_ns for path in finished}
        pack(**settings(photos, out, workers=count % 2))
        assert left_by(out) == reference
        assert times == {path: path.stat().st_mtime_ns for path in times}  # kept, not written again


def pack_stopped_in_the_third_shard(images: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack with a SIGTERM at an image of the third shard."""
    packed = Packing._packed

    def stopped(self: Packing, index: int) -> Any:
        if index == 14:
            signal.raise_signal(signal.SIGTERM)
        return packed(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(Packing, "_packed", stopped)
        pack(**settings(images, out))


def test_a_pack_stopped_by_a_signal_goes_on(
    photos: Path, tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted, match="stopped by SIGTERM after 2 of 4 shards: the same command continues"):
        pack_stopped_in_the_third_shard(photos, tmp_path / "out", monkeypatch)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["shard-000000.tar", "shard-000001.tar"]
    assert not list((tmp_path / "out").glob(".*.tmp"))
    with pytest.raises(UserError, match="out holds an unfinished pack: run the same `mgd-ssl pack` again"):
        open_images(tmp_path / "out")
    pack(**settings(photos, tmp_path / "out"))
    assert left_by(tmp_path / "out") == reference


def test_the_shards_do_not_depend_on_the_workers(photos: Path, tmp_path: Path, reference: dict[str, bytes]) -> None:
    pack(**settings(photos, tmp_path / "out", workers=2))
    assert left_by(tmp_path / "out") == reference


def test_a_finished_pack_is_not_written_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pack(**settings(photos, tmp_path / "out"))
    monkeypatch.setattr(Packing, "_packed", lambda self, index: pytest.fail("packed again"))
    assert pack(**settings(photos, tmp_path / "out")) == first


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "a bit flipped": flip,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-3]),
}


@pytest.mark.parametrize(
    ("part", "damage"),
    [(f".shard-000000.{kind}", damage) for kind in ("index", "skipped") for damage in DAMAGE]
    + [("shard-000000.tar", damage) for damage in ("gone", "emptied", "cut off")],
)
def test_a_shard_whose_parts_are_damaged_is_packed_again(
    photos: Path, tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, part: str, damage: str
) -> None:
    with pytest.raises(Interrupted):
        pack_stopped_in_the_third_shard(photos, tmp_path / "out", monkeypatch)
    DAMAGE[damage](tmp_path / "out" / part)
    pack(**settings(photos, tmp_path / "out"))
    assert left_by(tmp_path / "out") == reference


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_index_of_a_finished_pack_is_made_anew(
    photos: Path, tmp_path: Path, reference: dict[str, bytes], damage: str
) -> None:
    first = pack(**settings(photos, tmp_path / "out"))
    DAMAGE[damage](tmp_path / "out" / "shards.index")
    assert pack(**settings(photos, tmp_path / "out")) == first
    assert left_by(tmp_path / "out") == reference
    (tmp_path / "out" / "shards.index").unlink()
    (tmp_path / "out" / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000001.tar cannot be read \(No such file or directory\): restore it"):
        pack(**settings(photos, tmp_path / "out"))


def test_an_account_of_a_finished_pack_that_is_gone_is_told(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    pack(**settings(photos, tmp_path / "out"))
    pack(**settings(photos, tmp_path / "out"))
    assert not caplog.records
    for spoil in (lambda path: path.write_bytes(path.read_bytes()[:-30]), lambda path: path.unlink()):
        spoil(tmp_path / "out" / "skipped.jsonl")
        caplog.clear()
        pack(**settings(photos, tmp_path / "out"))
        assert "skipped.jsonl no longer names all 2 images left out: pack again to see them" in caplog.text


# errors


def test_a_full_disk_is_one_sentence_and_leaves_no_half_shard(
    photos: Path, tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, seen = os.fsync, []

    def full(descriptor: int) -> None:
        seen.append(descriptor)
        if len(seen) == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(TrainingError, match=r"out cannot be written \(No space left on device\): make room"):
            pack(**settings(photos, tmp_path / "out"))
    for path in (tmp_path / "out").glob("*.tar"):
        assert path.read_bytes() == reference[path.name]
        scan_shard(path, path.name)
    assert not list((tmp_path / "out").glob(".*.tmp"))
    pack(**settings(photos, tmp_path / "out"))
    assert left_by(tmp_path / "out") == reference

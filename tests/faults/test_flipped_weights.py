"""Flipped bits and lost parts of weights and states: refused, gone back from, or without effect."""

import io
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from linear_eval import linear
from mgd_ssl import UserError, pretrain
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.run.checkpoint import parsed, read_checkpoint, serialised
from mgd_ssl.run.zip_records import check_records
from tests.faults.damage import emptied, flip, sentence, truncated
from tests.runs import assert_same_end, differing

Damage = Callable[[bytes, random.Random], bytes]


def zeroed(content: bytes, draw: random.Random) -> bytes:
    """A page that a power cut has left without its data."""
    start = draw.randrange(len(content))
    return content[:start] + bytes(min(4096, len(content) - start)) + content[start + 4096 :]


def bookkeeping(content: bytes) -> list[int]:
    """Places of a zip that are no record's: headers, padding, directory."""
    inside = bytearray(len(content))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for record in archive.infolist():
            at = record.header_offset
            names = int.from_bytes(content[at + 26 : at + 28], "little")
            extra = int.from_bytes(content[at + 28 : at + 30], "little")
            start = at + 30 + names + extra
            inside[start : start + record.file_size] = b"\1" * record.file_size
    return [place for place, taken in enumerate(inside) if not taken]


def files(folder: Path) -> Iterator[Path]:
    """One of every kind of file that torch.save has written."""
    yield folder / "run" / "encoder.pt"
    yield folder / "run" / "checkpoints" / "step_00000009.pt"
    yield folder / "linear" / "linear_small_seed0" / "head.pt"
    yield max((folder / "linear" / "linear_small_seed0" / "checkpoints").iterdir())


@pytest.mark.usefixtures("evaluated")
def test_a_flipped_bit_is_refused_or_changes_nothing(folder: Path, tmp_path: Path, rounds: int) -> None:
    draw = random.Random(0)
    for original in files(folder):
        content, whole = original.read_bytes(), read_checkpoint(original)
        outside = bookkeeping(content)
        path = tmp_path / "damaged.pt"
        refused = 0
        for number in range(60 * rounds):
            path.write_bytes(flip(content, draw, outside if number % 3 == 0 else None))
            try:
                assert differing(read_checkpoint(path), whole) == []
            except UserError as error:
                sentence(error, path)
                refused += 1
        assert refused >= 30 * rounds  # the rest are flips in padding, dates and versions


def test_every_flip_in_the_bookkeeping_of_a_small_file_is_refused_or_changes_nothing() -> None:
    """Python's reader and torch's do not look at the same fields: one attribute makes a record a folder for one."""
    content = serialised({"a": torch.arange(10.0), "b": torch.full((16,), 3.0)})
    path, whole, passed = Path("weights.pt"), {"a": torch.arange(10.0), "b": torch.full((16,), 3.0)}, 0
    for place in bookkeeping(content):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            try:
                check_records(bytes(changed))
                found = parsed(bytes(changed), path)
            except (ValueError, UserError):
                continue
            passed += 1
            assert differing(found, whole) == [], (place, bit)
    assert passed > 1000  # padding, dates, versions


@pytest.mark.usefixtures("evaluated")
@pytest.mark.parametrize("damage", [truncated, zeroed])
def test_lost_parts_are_refused_or_change_nothing(damage: Damage, folder: Path, tmp_path: Path, rounds: int) -> None:
    draw = random.Random(1)
    for original in files(folder):
        content, whole = original.read_bytes(), read_checkpoint(original)
        path = tmp_path / "damaged.pt"
        for _ in range(20 * rounds):
            path.write_bytes(damage(content, draw))
            try:
                assert differing(read_checkpoint(path), whole) == []
                assert damage is zeroed  # where there were zeros before
            except UserError as error:
                sentence(error, path)


def test_every_flip_inside_a_record_of_a_teacher_is_refused(folder: Path, tmp_path: Path, rounds: int) -> None:
    """torch.load alone takes most of them."""
    content = (folder / "run" / "encoder.pt").read_bytes()
    outside = set(bookkeeping(content))
    inside = [place for place in range(len(content)) if place not in outside]
    draw, path, taken = random.Random(2), tmp_path / "teacher.pt", 0
    for _ in range(40 * rounds):
        path.write_bytes(flip(content, draw, inside))
        try:
            torch.load(path, weights_only=True)
            taken += 1
        except Exception:
            pass
        with pytest.raises(UserError, match=r"is truncated or damaged: copy or download it again") as error:
            load_backbone(path)
        sentence(error, path)
    assert taken > 30 * rounds


# runs that go on


def test_a_run_goes_back_from_a_flipped_bit(
    settings: Callable[[str], dict[str, Any]], folder: Path, rounds: int
) -> None:
    draw = random.Random(3)
    for damage in [flip, flip, flip, truncated, emptied, zeroed] * rounds:
        again = settings("stopped")
        newest = again["out"] / "checkpoints" / "step_00000005.pt"
        newest.write_bytes(damage(newest.read_bytes(), draw))
        pretrain(**again)
        assert_same_end(again["out"], folder / "run")
        log = (again["out"] / "log.txt").read_text()
        assert ("going back to the checkpoint before it" in log) == ("continuing after step 3 of 9" in log)


def test_damaged_states_of_an_evaluation_are_gone_back_from(
    evaluated: dict[str, Any], tmp_path: Path, rounds: int
) -> None:
    """The newest of two is damaged, and the result is taken away."""
    draw = random.Random(4)
    for damage in [flip, truncated] * rounds:
        out = tmp_path / "linear"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(evaluated["out"], out)
        results = [out / "linear_small_seed0" / name for name in ("result.json", "head.pt")]
        before = [path.read_bytes() for path in results]
        for path in results:
            path.unlink()
        newest = max((out / "linear_small_seed0" / "checkpoints").iterdir())
        newest.write_bytes(damage(newest.read_bytes(), draw))
        linear(**evaluated | {"out": out})
        assert [path.read_bytes() for path in results] == before
        assert "continuing after step" in (out / "linear_small_seed0" / "log.txt").read_text()

"""What a disk refuses becomes one sentence; what is appended is whole."""

import errno
import os
import resource
import sys
from pathlib import Path

import pytest

from mgd_ssl.errors import UserError
from mgd_ssl.files import ELSEWHERE, Appended, DiskError, check_place, take_room, write_whole, writing


def told(number: int | None, path: Path, advice: str = "then try", at_start: bool = False) -> tuple[type, str]:
    """Type and text of what becomes of an error of the system."""
    error = OSError("broken") if number is None else OSError(number, os.strerror(number))
    with pytest.raises(UserError) as raised, writing(path, advice, at_start=at_start):
        raise error
    assert raised.value.__cause__ is error
    return raised.type, str(raised.value).removeprefix(f"{path} cannot be written ")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "(No space left on device): make room, then try"),
        (errno.EDQUOT, "(Disk quota exceeded): make room, then try"),
        (errno.EROFS, "(Read-only file system): have the disk mounted for writing, then try"),
        (errno.ENOENT, "(its folder was moved or removed): put its folder back, then try"),
        (errno.EIO, "(Input/output error): make room or mend the folder, then try"),
        (errno.EACCES, "(Permission denied): make room or mend the folder, then try"),
        (None, "(broken): make room or mend the folder, then try"),
    ],
)
def test_an_error_becomes_cause_and_remedy(number: int | None, expected: str, tmp_path: Path) -> None:
    assert told(number, tmp_path / "file") == (DiskError, expected)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_at_the_start_a_path_may_be_at_fault(number: int, tmp_path: Path) -> None:
    expected = f"({os.strerror(number)}): choose another --out"
    assert told(number, tmp_path / "file", ELSEWHERE, at_start=True) == (UserError, expected)
    assert told(errno.ENOSPC, tmp_path / "file", ELSEWHERE, at_start=True)[0] is DiskError


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), writing(Path("file")):
        raise KeyError("x")


def test_places_that_can_be_seen_to_be_wrong(tmp_path: Path) -> None:
    check_place(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a cannot be written \(Not a directory\): choose another --out"):
        check_place(tmp_path / "file" / "a")


def test_what_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    """A limit of the system takes a part of the content, as the end of a disk does."""
    file = Appended(tmp_path / "file")
    file.append(b"whole\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append(bytes(50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "file").read_bytes() == b"whole\n"
    file.append(b"next\n")
    file.close()
    assert (tmp_path / "file").read_bytes() == b"whole\nnext\n"


def test_a_file_goes_on_where_its_folder_is_moved_to(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = Appended(tmp_path / "a" / "file")
    (tmp_path / "a").rename(tmp_path / "b")
    file.append(b"here")
    assert file.size == 4 and (tmp_path / "b" / "file").read_bytes() == b"here"
    file.close()


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_room_is_taken_for_a_file_with_holes(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if system == "darwin":
        monkeypatch.delattr(os, "posix_fallocate")
    path, size = tmp_path / "table", 3 * 2**20 + 5
    with path.open("w+b") as file:
        file.truncate(size)
        file.seek(2**20 - 2)
        file.write(b"four")
        file.flush()
        assert os.stat(path).st_blocks * 512 < 2**20
        take_room(file)
    assert os.stat(path).st_blocks * 512 >= size
    assert path.read_bytes() == bytes(2**20 - 2) + b"four" + bytes(size - 2**20 - 2)


def test_where_there_are_no_locks_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with pytest.raises(UserError, match=r"on Windows, use WSL2$"):
        write_whole(tmp_path / "file", b"content")
    assert not list(tmp_path.iterdir())

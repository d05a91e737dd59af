"""The lock of a folder, between real processes; what other systems than Linux do is tried on Linux."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from mgd_ssl import posix_locks
from mgd_ssl.errors import UserError
from mgd_ssl.run import lock as lock_module
from mgd_ssl.run.lock import in_use, take
from tests.runs import DEADLINE

# says whether it could take the lock, then keeps it until its input ends
HOLD = """
import os, sys
from mgd_ssl.run import lock
file = open(sys.argv[1], "r+")
print(lock.take(file), flush=True)
sys.stdin.read()
"""
SHARE = HOLD.replace("take(file)", "locked(file, 'LOCK_SH')")  # what a question is elsewhere, for longer
# one of the two speaks: under PYTHONUNBUFFERED lines of two processes mix in one pipe
FORK = HOLD.replace("sys.stdin.read()", "child = os.fork()\nif child: print(child, flush=True)\nsys.stdin.read()")

SYSTEMS = pytest.mark.parametrize("system", ["linux", "darwin"])


@contextmanager
def process(code: str, *args: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is fed and read by pipes; killed at the end."""
    command = [sys.executable, "-c", code, *map(str, args)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def on(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the lock's module believe in another system."""
    monkeypatch.setattr(lock_module, "sys", SimpleNamespace(platform=system))


def could_take(path: Path) -> bool:
    """Whether this process can take a lock, which it gives back at once."""
    with path.open("w") as file:
        return take(file)


@SYSTEMS
def test_one_process_has_it_until_it_is_killed(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(system, monkeypatch)
    path = tmp_path / ".lock"
    assert not in_use(tmp_path)  # there is no such file
    path.touch()
    assert not in_use(tmp_path)
    with process(HOLD, path) as holder:
        assert said(holder) == "True"
        assert in_use(tmp_path)
        assert not could_take(path)
        with process(HOLD, path) as other:
            assert said(other) == "False"
        assert in_use(tmp_path)  # neither the question nor the refusal has taken it away
    assert holder.wait(DEADLINE)
    assert not in_use(tmp_path)
    assert could_take(path)


@SYSTEMS
def test_a_process_that_ends_gives_it_back(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(system, monkeypatch)
    (tmp_path / ".lock").touch()
    with process(HOLD, tmp_path / ".lock") as holder:
        assert said(holder) == "True"
        assert holder.stdin is not None
        holder.stdin.close()
        assert holder.wait(DEADLINE) == 0
        assert not in_use(tmp_path)


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with process(FORK, tmp_path / ".lock") as holder:
        assert said(holder) == "True"
        child = int(said(holder))
        assert in_use(tmp_path)
        holder.kill()
        holder.wait(DEADLINE)
        os.kill(child, 0)  # still there: it reads on from the same pipe
        assert not in_use(tmp_path)


@SYSTEMS
def test_who_asks_does_not_keep_others_from_taking_it(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(system, monkeypatch)
    path = tmp_path / ".lock"
    path.touch()
    with process(HOLD, path) as holder:
        assert said(holder) == "True"
        assert in_use(tmp_path)
    assert not in_use(tmp_path)
    with process(HOLD, path) as holder:  # after a question that found it free
        assert said(holder) == "True"


def test_elsewhere_a_question_at_this_very_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that is over before the second attempt does not refuse."""
    on("darwin", monkeypatch)
    path = tmp_path / ".lock"
    path.touch()
    with process(SHARE, path) as asker:
        assert said(asker) == "True"
        assert not could_take(path)

        def asker_ends(seconds: float) -> None:
            assert seconds > 0
            asker.kill()
            asker.wait(DEADLINE)

        monkeypatch.setattr(lock_module, "time", SimpleNamespace(sleep=asker_ends))
        assert could_take(path)


@pytest.mark.parametrize("error", [BlockingIOError, PermissionError])
def test_both_ways_of_systems_to_refuse_are_known(
    error: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, how: int) -> None:
        raise error

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert not could_take(tmp_path / ".lock")


def test_without_such_locks_wsl_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").touch()
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    on("win32", monkeypatch)
    monkeypatch.setattr(posix_locks, "sys", SimpleNamespace(platform="win32"))
    for ask in (in_use, lambda out: could_take(out / ".lock")):
        with pytest.raises(UserError, match=r"^this system \(win32\) has no POSIX locks: on Windows, use WSL2$"):
            ask(tmp_path)

"""An evaluation that is stopped or killed, and continued by the same command, ends like one that never was."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linear_eval import feature_cache as cache
from linear_eval import linear
from linear_eval.heads import Heads
from mgd_ssl.evaluation.features import FeatureExtractor, Features
from tests.linear_eval.conftest import BASE, write_protocol
from tests.runs import command, ended, flags, processes, wait_for


def wait_at(call: int, flag: Path, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which waits in a call (counted from 1) while `flag`, which it makes, is there."""
    calls = 0

    def waiting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            flag.touch()
            while flag.exists():
                time.sleep(0.005)
        return function(*args, **kwargs)

    return waiting


def hold_step(step: int, flag: Path) -> None:
    """Have this process wait within a step of the heads, counted over all rounds."""
    Heads.step = wait_at(step, flag, Heads.step)  # type: ignore[method-assign]


def small_parts() -> None:
    """Have features computed 8 at a time: 2 parts for the validation set, then 6 for the training set."""
    cache.BATCH, cache.PART_SECONDS = 8, 0


def hold_part(part: int, flag: Path) -> None:
    """Have this process wait before a part of the features."""
    small_parts()
    FeatureExtractor.__call__ = wait_at(part, flag, FeatureExtractor.__call__)  # type: ignore[method-assign]


def start(settings: dict[str, Any], stderr: Path, *prepare: Any) -> ForkServerProcess:
    """`mgd-ssl linear` in a process of its own."""
    how = prepare or (None,)
    process = processes.Process(target=command, args=(["linear", *flags(settings)], stderr, {}, *how), daemon=False)
    process.start()
    return process


def stopped(settings: dict[str, Any], folder: Path, number: signal.Signals, hold: Callable[..., None], at: int) -> int:
    """Exit code of the command when it gets a signal where it waits."""
    flag = folder / "waiting"
    process = start(settings, folder / "first.txt", hold, at, flag)
    wait_for(flag.exists, process)
    assert process.pid is not None
    os.kill(process.pid, number)
    flag.unlink()
    return ended(process)


def results(out: Path) -> dict[str, bytes]:
    """What an evaluation leaves behind for others, byte for byte."""
    paths = [path for name in ("result.json", "head.pt", "*.npy") for path in out.rglob(name)]
    assert {path.name for path in paths} == {"result.json", "head.pt", "values.npy", "rows.npy"}
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("step", "curvature"), [(2, 0.1), (10, 0.0), (15, 0.1)], ids=["first round", "end of the last round", "last head"]
)
def test_sigterm_while_heads_are_trained(step: int, curvature: float, settings: dict[str, Any], tmp_path: Path) -> None:
    """Rounds of 4 and 6 steps, then 18."""
    settings["protocol"] = str(write_protocol(tmp_path / "p.toml", BASE | {"curvature": curvature}))
    linear(**settings | {"out": tmp_path / "whole"})
    assert stopped(settings, tmp_path, signal.SIGTERM, hold_step, step) == 75
    message = f"stopped by SIGTERM after step {step}: the same command continues from there"
    assert message in (tmp_path / "first.txt").read_text()
    assert not list(settings["out"].rglob("result.json"))

    assert ended(start(settings, tmp_path / "second.txt")) == 0
    assert f"continuing after step {step} of 28" in (tmp_path / "second.txt").read_text()
    assert results(settings["out"]) == results(tmp_path / "whole")


def test_sigterm_while_a_head_is_trained_on_live_features(live_settings: dict[str, Any], tmp_path: Path) -> None:
    """In the middle of the second epoch of 6 steps."""
    linear(**live_settings | {"out": tmp_path / "whole"})
    assert stopped(live_settings, tmp_path, signal.SIGTERM, hold_step, 8) == 75
    assert ended(start(live_settings, tmp_path / "second.txt")) == 0
    assert "continuing after step 8 of 18" in (tmp_path / "second.txt").read_text()
    assert results(live_settings["out"]) == results(tmp_path / "whole")


@pytest.mark.parametrize(
    ("number", "part", "code", "told"),
    [
        pytest.param(signal.SIGTERM, 5, 75, "features of train: continuing after 24 of 48", id="stopped"),
        pytest.param(signal.SIGKILL, 5, -9, "features of train: continuing after 16 of 48", id="killed"),
        pytest.param(signal.SIGKILL, 3, -9, "features of train: 8 of 48", id="killed before the first part"),
        pytest.param(
            signal.SIGINT, 1, 75, "features of val: continuing after 8 of 12", id="stopped in the first table"
        ),
    ],
)
def test_features_continue_after_the_last_whole_part(
    number: signal.Signals,
    part: int,
    code: int,
    told: str,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "BATCH", 8)
    monkeypatch.setattr(cache, "PART_SECONDS", 0)
    linear(**settings | {"out": tmp_path / "whole"})
    assert stopped(settings, tmp_path, number, hold_part, part) == code
    if code == 75:
        assert "features of" in (said := (tmp_path / "first.txt").read_text())
        assert said.rstrip().endswith(": the same command continues from there")

    assert ended(start(settings, tmp_path / "second.txt", small_parts)) == 0
    assert told in (tmp_path / "second.txt").read_text()
    assert results(settings["out"]) == results(tmp_path / "whole")
    assert not list((settings["out"] / "linear_features").glob(".*unfinished"))


def test_an_unfinished_table_that_is_not_whole_is_computed_anew(tmp_path: Path) -> None:
    part = Features(np.ones((3, 2), dtype=np.float32), np.arange(3))
    first = cache.Writer(tmp_path / "entry", 9)
    first.write(part)
    assert cache.Writer(tmp_path / "entry", 9).open() == 3
    (first.unfinished / "values.npy").write_bytes(b"half a head")
    again = cache.Writer(tmp_path / "entry", 9)
    assert again.open() == 0 and not first.unfinished.exists()


def test_a_second_process_waits_for_the_features_of_the_first(settings: dict[str, Any], tmp_path: Path) -> None:
    """Two seeds at once; each table is computed by one of them."""
    flag = tmp_path / "waiting"
    first = start(settings, tmp_path / "first.txt", hold_part, 4, flag)
    wait_for(flag.exists, first)
    second = start(settings | {"seeds": (1,)}, tmp_path / "second.txt", small_parts)
    told = tmp_path / "second.txt"
    wait_for(lambda: told.exists() and "waiting for it" in told.read_text(), second)
    flag.unlink()
    assert ended(first) == ended(second) == 0
    assert "features of train: another process computes them" in told.read_text()
    assert len(list(settings["out"].glob("linear_small_seed*/result.json"))) == 2

"""Processes of one group, for tests that need several ranks."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import (
    DEADLINE,
    free_port,
    processes,
    tiny,
)


def member(work: Callable[..., Any], out: Path, number: int, count: int, port: int, args: tuple[Any, ...]) -> None:
    """One rank: writes what `work` returns, or its traceback, to a file."""
    os.environ.update(
        RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    try:
        torch.save(work(*args), out / f"{number}.pt")
    except BaseException:
        (out / f"{number}.error").write_text(traceback.format_exc())
        raise


def on_ranks(count: int, out: Path, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(*args)` returns on each of `count` ranks; they start their process group themselves."""
    out.mkdir()
    port = free_port()
    ranks = [processes.Process(target=member, args=(work, out, n, count, port, args)) for n in range(count)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(DEADLINE)
        if one.exitcode is None:
            for other in ranks:
                other.kill()
            pytest.fail("a rank hangs")
    errors = "\n".join(path.read_text() for path in sorted(out.glob("*.error")))
    assert not errors, errors
    return [torch.load(out / f"{n}.pt", weights_only=False) for n in range(count)]


def settings_of_pair(images: Path, out: Path, teacher: Path) -> dict[str, Any]:
    knn = {"train": images / "train", "val": images / "val", "every_epochs": 1, "k": 3}
    return tiny(images, out, teacher=teacher, knn=knn)

"""Settings of runs of `mgd-ssl detect` that take seconds, and such runs in two processes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.runs import command as run_command
from tests.runs import ended, free_port, processes

STEPS = 7


def settings(root: Path, out: Path, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "out": out,
        "student": "thin_resnet10",
        "data": {"root": root, "train_sides": (48, 64), "val_side": 48, "longest_side": 96, "workers": 0},
        "network": {"norm": "group", "frozen_stages": 0, "pyramid_channels": 16},
        "optim": {"steps": STEPS, "batch_size": 4, "lr": 0.005},
        "checkpoint": {"every_steps": 2, "keep": 9},
        "runtime": {"log_every": 1, "threads": 1, "device": "cpu"},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and key in base else value
    return base


def guided(teacher: Path, **changes: Any) -> dict[str, Any]:
    return {"teacher": teacher, "mgd": {"weight": 1e-6, "matching_images": 6, "matching_at": (0.5,), **changes}}


def newest(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(sorted((run / "checkpoints").glob("step_*.pt"))[-1], weights_only=True)
    return {key: value for key, value in state.items() if key not in ("config", "metrics_bytes")}


def launched(args: list[str], out: Path) -> Iterator[int]:
    port = free_port()
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = []
    for rank in range(2):
        env = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = processes.Process(target=run_command, args=(args, out / f"{rank}.txt", env, None), daemon=False)
        process.start()
        started.append(process)
    for process in started:
        yield ended(process)

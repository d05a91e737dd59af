"""Tiny runs for the tests of training: settings, processes to run them in, and what they leave behind."""

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mgd_ssl import pretrain
from mgd_ssl.cli import main
from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.images import Unreadable
from mgd_ssl.data.loader import batches
from mgd_ssl.data.order import TrainingOrder
from mgd_ssl.data.samples import PretrainBatch, TwoViews, view_policy
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime, precision_of
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.moco import build_method
from mgd_ssl.tasks.pretraining import Pretraining, update_of
from mgd_ssl.training.task import StepOutput
from mgd_ssl.training.update import Update

SPEED = ("seconds", "images_per_second", "data_wait")  # what differs between two equal runs
Reference = Callable[..., Path]  # the uninterrupted run of some settings
DEADLINE = 120  # seconds after which a process of a test hangs

# children are forked from one process that has imported everything: a real process in milliseconds
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["mgd_ssl.tasks.student", "mgd_ssl.cli", "mgd_ssl"])


def tiny(images: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a run of 3 epochs of 3 steps that rematches after the first epoch; groups are merged over them."""
    base: dict[str, Any] = {
        "out": out,
        "student": "thin_resnet10",
        "data": {"train": images / "train", "image_size": 32, "workers": 0},
        "moco": {"queue_size": 64, "dim": 16},
        "mgd": {"matching_images": 16, "matching_epochs": (1,)},
        "optim": {"epochs": 3, "batch_size": 16, "warmup_epochs": 1},
        "checkpoint": {"keep": 3},
        "runtime": {"log_every": 2, "threads": 1, "device": "cpu"},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and key in base else value
    return base


def trained_teacher(base: Path, images: Path) -> Path:
    """Weights of a teacher trained for an epoch; trained once for one `base`."""
    settings = tiny(images, base / "teacher", student="thin_resnet14", optim={"epochs": 1}, seed=7)
    return Path(pretrain(**settings).encoder)


def flags(settings: Mapping[str, Any]) -> list[str]:
    """The same settings as arguments of `mgd-ssl pretrain`."""
    args = []
    for key, value in settings.items():
        group = value if isinstance(value, dict) else {"": value}
        for name, item in group.items():
            items = item if isinstance(item, tuple) else (item,)
            args += [f"--{key}.{name}".rstrip("."), *(str(i) for i in items)]
    return args


def rows(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without what the clock says."""
    parsed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in SPEED} for row in parsed]


def checkpoint(run: Path, step: int) -> dict[str, Any]:
    """A checkpoint without what may differ between two equal runs."""
    state: dict[str, Any] = torch.load(run / "checkpoints" / f"step_{step:08d}.pt", weights_only=True)
    return {key: value for key, value in state.items() if key not in ("config", "metrics_bytes")}


def steps_saved(run: Path) -> list[int]:
    """Steps of all checkpoints."""
    return sorted(int(path.stem.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*.pt"))


def differing(a: Any, b: Any, where: str = "") -> list[str]:
    """Places at which two nested structures are not the same bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [place for key in a for place in differing(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [place for i, pair in enumerate(zip(a, b, strict=True)) for place in differing(*pair, f"{where}/{i}")]
    return [] if type(a) is type(b) and a == b else [where]


def assert_same_end(run: Path, reference: Path, step: int = 9) -> None:
    """Two runs ended with the same state, the same rows and the same student."""
    assert steps_saved(run)[-1] == steps_saved(reference)[-1] == step
    assert differing(checkpoint(run, step), checkpoint(reference, step)) == []
    assert rows(run) == rows(reference)
    students = [torch.load(folder / "encoder.pt", weights_only=True) for folder in (run, reference)]
    assert differing(*students) == []


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Have this process receive a signal while it takes a step, counted from 1."""
    update = Update.__call__

    def interrupted(self: Update, inputs: tuple[Any, ...], finished: int) -> StepOutput:
        if finished == step - 1:
            signal.raise_signal(number)
        return update(self, inputs, finished)

    monkeypatch.setattr(Update, "__call__", interrupted)


def hold_at(step: int, flag: Path) -> None:
    """Have runs of this process wait within a step (counted from 1) while `flag`, which they make, is there."""
    update = Update.__call__

    def waiting(self: Update, inputs: tuple[Any, ...], finished: int) -> StepOutput:
        if finished == step - 1:
            flag.touch()
            while flag.exists():
                time.sleep(0.005)
        return update(self, inputs, finished)

    Update.__call__ = waiting  # type: ignore[assignment, method-assign]


def die_in_checkpoint(count: int) -> None:
    """Have this process be killed when half of its checkpoint number `count` (from 1) is written."""
    fsync = os.fsync
    seen = []

    def killed(descriptor: int) -> None:
        if ".step_" in os.readlink(f"/proc/self/fd/{descriptor}"):
            seen.append(descriptor)
            if len(seen) == count:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = killed  # type: ignore[assignment]


def hear_signals() -> None:
    """Take signals as a program in a terminal does, also when the tests run under nohup or in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)


def command(args: list[str], stderr: Path, env: dict[str, str], prepare: Callable[..., None] | None, *how: Any) -> None:
    """`mgd-ssl` in this process, which becomes the leader of a process group; ends it with the exit code."""
    os.setpgid(0, 0)
    hear_signals()
    multiprocessing.set_start_method("fork", force=True)  # of its data workers, as outside the tests
    os.environ.update(env)
    for number in (1, 2):
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare(*how)
    raise SystemExit(main(args))


def start(
    settings: Mapping[str, Any],
    stderr: Path,
    prepare: Callable[..., None] | None = None,
    *how: Any,
    env: dict[str, str] | None = None,
) -> ForkServerProcess:
    """`mgd-ssl pretrain` in a process of its own."""
    args = ["pretrain", *flags(settings)]
    process = processes.Process(target=command, args=(args, stderr, env or {}, prepare, *how), daemon=False)
    process.start()
    return process


def ended(process: ForkServerProcess) -> int:
    """Exit code of a process, minus the signal that killed it."""
    process.join(DEADLINE)
    if process.exitcode is None:
        process.kill()
        pytest.fail("the process hangs")
    return process.exitcode


def wait_for(condition: Callable[[], bool], process: ForkServerProcess | None = None) -> None:
    """Return when the condition holds; fail when the process ends before, or too much time passes."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert process is None or process.is_alive(), "the process ended early"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def children(pid: int | None) -> list[int]:
    """Pids of the processes a process has started."""
    return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]


def gone(pids: Sequence[int]) -> bool:
    """Whether none of these processes runs any more; one that is dead may wait to be collected."""
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX":
            return False
    return True


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Noted:
    """An account that keeps what it is told."""

    def __init__(self) -> None:
        self.unreadable: list[Unreadable] = []

    def note(self, unreadable: Sequence[Unreadable]) -> None:
        """Remember them."""
        self.unreadable += unreadable


class Stepper:
    """A task of pretraining and its update, stepped as the loop does; matched if it has a teacher."""

    def __init__(self, settings: dict[str, Any]) -> None:
        config = self.config = PretrainConfig(**settings)
        config.out.mkdir()
        memory_format = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
        self.runtime = Runtime(torch.device("cpu"), precision_of(config.runtime, torch.device("cpu")), memory_format, 1)
        self.images = ImageList.scan(config.data.train)
        self.teacher = None if config.teacher is None else Teacher.load(config.teacher)
        self.module = build_method(config, self.teacher).to(memory_format=memory_format)
        with Session(config.out, 9, self.runtime) as self.session:
            self.task = Pretraining(config, self.module, self.teacher, self.images, self.session)
            self.update = update_of(config, self.task)
            if self.task.sight.int8:
                self.task.calibrate()
            if self.teacher is not None:
                self.task.rematch()
        self.module.train()

    def step(self, batch: PretrainBatch) -> StepOutput:
        """Forward, backward, update, enqueue."""
        output = self.update(self.task.inputs(batch, self.session.step), self.session.step)
        self.task.after_step(output.carried)
        self.session.step += 1
        return output

    def batches(self, count: int) -> list[PretrainBatch]:
        """The first ones."""
        config = self.config
        dataset = TwoViews(self.images, view_policy(config.data), config.data.image_size, config.seed)
        order = TrainingOrder(len(self.images), config.optim.batch_size, config.optim.epochs, config.seed, 0, 0, 1)
        with batches(dataset, order, 0, pin=False) as loader:
            return list(islice(loader, count))


def stepper_for(settings: dict[str, Any], num_batches: int) -> tuple[Stepper, list[PretrainBatch]]:
    """A stepper and its first batches."""
    stepper = Stepper(settings)
    return stepper, stepper.batches(num_batches)

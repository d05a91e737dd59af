"""The process a run lives in: ranks, device, threads, signals."""

import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import TypeVar

import torch
import torch.distributed as dist

from mgd_ssl.config import RuntimeConfig
from mgd_ssl.errors import Interrupted, RankZeroError, UserError
from moco.dist import is_distributed, rank, world_size

WORTH_COMPILING = 1000  # steps of a run; compiling takes minutes, and saves some ten milliseconds a step
PATIENCE = timedelta(hours=2)  # of ranks that wait for rank 0, which may be listing millions of files
AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

T = TypeVar("T")
logger = logging.getLogger("mgd_ssl")


@dataclass(frozen=True)
class Runtime:
    """Where and how tensors are computed in this process."""

    device: torch.device
    precision: torch.dtype | None
    memory_format: torch.memory_format
    local_world_size: int

    def autocast(self) -> AbstractContextManager[object]:
        """Autocast to the chosen precision, nothing for float32."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def data_workers(self, wanted: int | None) -> int:
        """Data processes for this process: as wanted, else one where training itself needs the cores, or all of
        this process's share of them where a GPU trains."""
        if wanted is not None:
            return wanted
        return cores(self.local_world_size) if self.device.type == "cuda" else 1


def cores(local_world_size: int) -> int:
    """Cores of this process: what a launcher that bound it to some says (`MGD_SSL_CORES`), else its share of those
    the processes of this host may run on."""
    told = os.environ.get("MGD_SSL_CORES")
    return int(told) if told else max(1, cores_here() // local_world_size)


def cores_here() -> int:
    """Cores this process may run on; all there are where the system binds none to a process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def precision_of(config: RuntimeConfig, device: torch.device) -> torch.dtype | None:
    """Autocast's dtype on a device, None for float32."""
    if config.precision != "auto":
        return AUTOCAST[config.precision]
    natively = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if natively else None


def settled(config: RuntimeConfig, runtime: Runtime, steps: int) -> RuntimeConfig:
    """The same settings with what they leave open decided.

    Args:
        config: of the run.
        runtime: of this process.
        steps: of the whole run.
    """
    (precision,) = (name for name, dtype in AUTOCAST.items() if dtype == runtime.precision)
    compiling = config.compile
    if compiling is None:
        compiling = runtime.device.type == "cuda" and steps >= WORTH_COMPILING and can_compile()
    return config.model_copy(update={"precision": precision, "compile": compiling})


def can_compile() -> bool:
    """Whether torch.compile finds what it needs for a GPU: triton, and a C compiler."""
    return find_spec("triton") is not None and any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))


def choose_kernels(deterministic: bool) -> None:
    """Of cuDNN and cuBLAS: the fastest by trial, or those that give the same bits every time."""
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may sum in another order
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(deterministic)


@contextmanager
def process(config: RuntimeConfig) -> Iterator[Runtime]:
    """Set this process up as torchrun's environment says, and take it down again.

    With one process there is no process group. With several, gloo carries CPU tensors and nccl those on GPUs.

    Raises:
        UserError: when a device is asked for and absent, or processes share a GPU.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.device is 'cuda' but torch sees no GPU: pass --runtime.device cpu, or mend the driver")
    if config.device == "mps":
        check_mps()
    use_cuda = config.device in ("auto", "cuda") and torch.cuda.is_available()
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = config.threads or cores(local_world_size)
    previous_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    if use_cuda:
        # a launcher may show every process all GPUs of the host, or its own alone
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        torch.cuda.set_device(device)
        choose_kernels(config.deterministic)
    else:
        device = torch.device("mps" if config.device == "mps" else "cpu")
    owns_group = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not is_distributed()
    if owns_group:
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=PATIENCE)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    try:
        if use_cuda and world_size() > 1:
            check_one_each(shared(f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"))
        yield Runtime(device, precision_of(config, device), memory_format, local_world_size)
    finally:
        torch.set_num_threads(previous_threads)
        if owns_group:
            dist.destroy_process_group()


def check_mps() -> None:
    """Raise UserError unless this process can compute on Apple's GPU, alone."""
    if not torch.backends.mps.is_available():
        raise UserError("runtime.device is 'mps' but torch sees no Apple GPU: pass --runtime.device cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("runtime.device is 'mps', which several processes cannot share: start one, or pass cpu")


def shared(mine: str) -> list[str]:
    """A word of every rank, in their order."""
    words = [""] * world_size()
    dist.all_gather_object(words, mine)
    return words


def check_one_each(devices: Sequence[str]) -> None:
    """Raise UserError, on all ranks alike, when two processes were given one GPU: nccl would fail late and darkly.

    Args:
        devices: host and identity of the GPU of every rank.
    """
    for first, device in enumerate(devices):
        if device in devices[first + 1 :]:
            second = devices.index(device, first + 1)
            host = device.split()[0]
            raise UserError(
                f"processes {first} and {second} share one GPU of {host}: start no more processes on a host than it "
                f"has GPUs ({len({each for each in devices if each.split()[0] == host})} there), or pass "
                "--runtime.device cpu"
            )


def on_rank_zero(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 alone and give its result to all.

    Raises:
        UserError: of `work`, on all ranks; also Interrupted.
        RankZeroError: on the other ranks, when `work` raises anything else, which rank 0 then raises.
    """
    outcome: list[object] = [None]
    unexpected: BaseException | None = None
    if rank() == 0:
        try:
            outcome = [work()]
        except (UserError, Interrupted) as error:
            outcome = [error]
        except BaseException as error:
            unexpected = error
            outcome = [RankZeroError(f"rank 0 failed: {type(error).__name__}: {error}")]
    if world_size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    if unexpected is not None:
        raise unexpected
    if isinstance(outcome[0], UserError | Interrupted | RankZeroError):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]

"""The machine: cores, memory, device, shared memory, and how fast its disk takes a file."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from mgd_ssl.files import ELSEWHERE, check_place, writing
from mgd_ssl.run.environment import environment
from mgd_ssl.run.runtime import Runtime, cores

WRITTEN = 2**26  # bytes
SHARED_MEMORY = Path("/dev/shm")


def look_at_machine(out: Path, runtime: Runtime) -> dict[str, Any]:
    """Resources of this machine and versions of what runs on it."""
    check_place(out)
    found: dict[str, Any] = {"cores": cores(1), "threads": torch.get_num_threads(), "device": runtime.device.type}
    found |= {"memory_gb": memory_gb("MemTotal"), "memory_free_gb": memory_gb("MemAvailable")}
    if runtime.device.type == "cuda":
        properties = torch.cuda.get_device_properties(runtime.device)
        free, _ = torch.cuda.mem_get_info(runtime.device)
        found |= {"gpus": torch.cuda.device_count(), "gpu": properties.name, "cuda": torch.version.cuda}
        found |= {"gpu_memory_gb": gb(properties.total_memory), "gpu_memory_free_gb": gb(free)}
        found |= {"driver": driver(), "bfloat16": torch.cuda.is_bf16_supported()}
    if SHARED_MEMORY.is_dir():
        found["shared_memory_gb"] = gb(shutil.disk_usage(SHARED_MEMORY).free)
    return found | look_at_disk(out) | {"versions": environment()}


def look_at_disk(out: Path) -> dict[str, Any]:
    """Room, and the speed at which a file of 64 MB is written and synced."""
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    path = place / f".doctor.{os.getpid()}.tmp"
    content, started = os.urandom(2**20), time.monotonic()
    try:
        with writing(path, ELSEWHERE, at_start=True), path.open("wb") as file:
            for _ in range(WRITTEN // len(content)):
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
    speed = WRITTEN / 2**20 / max(1e-6, time.monotonic() - started)
    return {"disk": str(place), "disk_free_gb": gb(shutil.disk_usage(place).free), "disk_write_mb_s": round(speed)}


def memory_gb(name: str) -> float | None:
    """A line of /proc/meminfo; all there is where the system has no such file."""
    try:
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(name))
        return round(int(line.split()[1]) / 2**20, 1)
    except (OSError, StopIteration):
        known = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= os.sysconf_names.keys()
        return gb(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if known else None


def driver() -> str | None:
    """Version of the GPU's driver, None where the system does not tell."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return None


def gb(num_bytes: float) -> float:
    """Gibibytes."""
    return round(num_bytes / 2**30, 1)

"""Exact nearest neighbours by inner product: through faiss, or through torch where faiss is not installed."""

import importlib.util
import logging
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

CPU_CHUNK = 4096  # queries searched at a time on a CPU,
CPU_BANK_CHUNK = 4096  # against this many of the bank: with 64 MB of similarities a third faster than faiss's 1024
GPU_CHUNK = 65536  # queries searched at a time on a GPU: each call copies the bank there
GPU_MEMORY = 2**32  # bytes of the bank on the GPU at a time
GPU_MAX_K = 2048  # of faiss

logger = logging.getLogger("mgd_ssl")


@cache
def found_faiss() -> ModuleType | None:
    """faiss, or None where it is not installed; a warning once where two packages overwrite each other."""
    if importlib.util.find_spec("faiss") is None:
        logger.info("faiss is not installed: neighbours are searched by torch, as exactly")
        return None
    if installed("faiss-cpu") and installed("faiss-gpu"):
        logger.warning(
            "faiss-cpu and faiss-gpu are both installed and overwrite each other's files: uninstall both, then install "
            "one of them"
        )
    import faiss

    return faiss


def installed(package: str) -> bool:
    """Whether pip knows a package."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def queries_at_once(device: torch.device | None, k: int) -> int:
    """How many queries a call of `nearest` had best be given."""
    return GPU_CHUNK if _faiss_gpu(device) is not None and k <= GPU_MAX_K else CPU_CHUNK


def nearest(
    bank: np.ndarray, queries: np.ndarray, k: int, device: torch.device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity [q, k], falling, and index [q, k] of the k nearest rows of a bank.

    Args:
        bank: [n, d] float32.
        queries: [q, d] float32, contiguous.
        k: neighbours, at most n.
        device: where to search; None: on a GPU where faiss has one.
    """
    if k <= GPU_MAX_K and (faiss := _faiss_gpu(device)) is not None:
        number = torch.cuda.current_device() if device is None or device.index is None else device.index
        return faiss.knn_gpu(
            _gpu_resources(faiss), queries, bank, k,
            metric=faiss.METRIC_INNER_PRODUCT, device=number, vectorsMemoryLimit=GPU_MEMORY,
        )  # fmt: skip
    faiss = found_faiss()
    if faiss is None or (device is not None and device.type == "cuda" and k <= GPU_MAX_K):
        return nearest_by_torch(bank, queries, k, device)  # a GPU that this faiss does not know, too
    faiss.omp_set_num_threads(torch.get_num_threads())
    faiss.cvar.distance_compute_blas_database_bs = CPU_BANK_CHUNK
    return faiss.knn(queries, bank, k, metric=faiss.METRIC_INNER_PRODUCT)


def nearest_by_torch(
    bank: np.ndarray, queries: np.ndarray, k: int, device: torch.device | None
) -> tuple[np.ndarray, np.ndarray]:
    """`nearest` without faiss: the bank part by part, the best of each merged with those before."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    where = where if where.type == "cuda" else torch.device("cpu")
    similarity, neighbours = list[Tensor](), list[Tensor]()
    for asked in torch.from_numpy(queries).split(CPU_CHUNK):
        mine = asked.to(where)
        best = mine.new_empty(len(mine), 0)
        rows = torch.empty(len(mine), 0, dtype=torch.int64, device=where)
        for start in range(0, len(bank), CPU_BANK_CHUNK):
            part = torch.from_numpy(np.ascontiguousarray(bank[start : start + CPU_BANK_CHUNK])).to(where)
            scores = torch.cat([best, mine @ part.T], dim=1)  # [q, k + part]
            numbers = torch.arange(start, start + len(part), device=where).expand(len(mine), -1)
            best, places = scores.topk(min(k, scores.shape[1]), dim=1)
            rows = torch.cat([rows, numbers], dim=1).gather(1, places)
        similarity.append(best.cpu())
        neighbours.append(rows.cpu())
    return torch.cat(similarity).numpy(), torch.cat(neighbours).numpy()


def _faiss_gpu(device: torch.device | None) -> ModuleType | None:
    """faiss where it can search on the GPU that is wanted."""
    if (device is not None and device.type != "cuda") or not torch.cuda.is_available():
        return None
    faiss = found_faiss()
    return faiss if faiss is not None and hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() > 0 else None


@cache
def _gpu_resources(faiss: ModuleType) -> Any:
    """Streams and scratch memory of faiss, of which a process needs one set: making them takes and frees gigabytes."""
    return faiss.StandardGpuResources()

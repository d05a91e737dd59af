"""Files with random damage, and what becomes of those who read them."""

import io
import resource
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runs import DEADLINE, processes

MOST_MEMORY = 400  # MB that a process may grow by


# what is mutated


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def mutated(content: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes and lengths overwritten, parts cut out, doubled or taken from another file."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        # the start of a file is where its sizes are
        at = int(rng.integers(min(len(data), 200)) if rng.random() < 0.6 else rng.integers(len(data)))
        kind = rng.integers(6)
        if kind == 0:
            data[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            data[at : at + 1] = rng.bytes(1)
        elif kind == 2:
            extreme = int(rng.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]))
            data[at : at + 4] = struct.pack(rng.choice(["<I", ">I"]), extreme)
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            data[at:at] = others[rng.integers(len(others))][at : at + int(rng.integers(1, 64))]
        else:
            del data[max(at, 4) :]
    return bytes(data)


# a process of its own, which may crash or hang


def reported(queue: Any, work: Callable[..., Any], *args: Any) -> None:
    """Do the work with a report of what came out of it, and of the memory it took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put((work(*args), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def survived(work: Callable[..., Any], *args: Any, patience: float = DEADLINE) -> Any:
    """What `work` returns, done in another process, which neither crashes nor hangs nor grows."""
    queue = processes.Queue()
    child = processes.Process(target=reported, args=(queue, work, *args))
    child.start()
    deadline = time.monotonic() + patience
    while child.is_alive() and queue.empty() and time.monotonic() < deadline:
        time.sleep(0.01)
    if queue.empty():
        child.join(1)
        told = "it hangs" if child.exitcode is None else f"it ended with {child.exitcode}"
        child.kill()
        pytest.fail(told)
    result, megabytes = queue.get()
    child.join()
    assert megabytes < MOST_MEMORY
    return result

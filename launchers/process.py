"""A launched command inside one of its processes: where it stands, how it runs, and what is told of its end."""

import json
import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from launchers.records import Attempt, Failure, Records
from mgd_ssl.commands import run
from mgd_ssl.errors import Interrupted, RankZeroError, TrainingError, UserError, code_of, out_of_files
from mgd_ssl.files import write_whole, writing
from mgd_ssl.printable import printable_lines

PORTS = range(10_000, 30_000)  # below those the system gives to outgoing connections
RENDEZVOUS_PATIENCE = 600.0  # seconds the other ranks wait for rank 0's address
PEER_GONE = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection refused", "gloo")


class Place(NamedTuple):
    """One process of a job."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node: str
    attempt: int  # how often the job was started before


class Ending(NamedTuple):
    """How a command ended in this process."""

    code: int
    told: str = ""
    signal_number: int = 0  # of the signal that stopped it after its state was saved


def execute(command: Sequence[str], records: Records, place: Place, logs: Sequence[Path] = ()) -> Ending:
    """Run a command of `mgd-ssl` as one process of a job; its start (rank 0) and its failure (any rank) are recorded.

    Args:
        command: its name and arguments.
        records: of the job.
        place: of this process, also in the environment.
        logs: files this process's output goes to.
    """
    try:
        if place.rank == 0:
            sizes = [log.stat().st_size if log.is_file() else 0 for log in logs]
            records.write(Attempt(place.attempt, [place.node], sizes))
        code = run(command[0], command[1:])
        told, number = ("", 0) if code == 0 else (f"{command[0]} ended with code {code}", 0)
    except SystemExit as stop:  # of the parser of the command line, which has told why
        code, told, number = (0, "", 0) if not stop.code else (2, f"{command[0]} did not accept its options", 0)
    except BaseException as caught:
        error = out_of_files(caught) or caught
        code, number = code_of(error), error.signal_number if isinstance(error, Interrupted) else 0
        told = str(error) if isinstance(error, Interrupted | UserError) else traceback.format_exc()
        if not number:
            note(records, place, code, told, peer_gone(error))
    return Ending(code, told, number)


def note(records: Records, place: Place, code: int, told: str, connection: bool) -> None:
    """Record the failure of this process; where that fails too, on a full disk for one, the log has it at least."""
    others = [rank for rank in records.failed_ranks(place.attempt) if rank != place.rank]
    try:
        records.write(Failure(place.attempt, place.rank, place.node, code, told, connection, after=others))
    except UserError:
        print(printable_lines(f"mgd-ssl: rank {place.rank}: {told}"), file=sys.stderr)


def peer_gone(error: BaseException) -> bool:
    """Whether an error says no more than that another process of the job is gone."""
    if isinstance(error, UserError | TrainingError):
        return False
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, dist.DistError | ConnectionError | RankZeroError):
            return True
        if isinstance(seen, RuntimeError) and any(words in str(seen).lower() for words in PEER_GONE):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def enter(place: Place, records: Records, port: int | None) -> None:
    """Tell torch, through the environment, who this process is and where rank 0 listens."""
    os.environ |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_world_size),
    }
    if place.world_size > 1:
        address, chosen = rendezvous(place, records, port)
        os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(chosen)}


def rendezvous(place: Place, records: Records, port: int | None) -> tuple[str, int]:
    """Node and port of rank 0, which tells the others through the folder they share.

    A port made from the job's number would be taken by whoever else listens there; this one was free.

    Raises:
        TimeoutError: when rank 0 says nothing.
        DiskError: on rank 0, when it cannot.
    """
    path = records.folder / f"rendezvous_{place.attempt}.json"
    if place.rank == 0:
        address = json.dumps([place.node, port or free_port()])
        with writing(path):
            write_whole(path, address.encode())
    deadline = time.monotonic() + RENDEZVOUS_PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"rank 0 did not write {path} within {RENDEZVOUS_PATIENCE:.0f} s: is that folder shared by all nodes?"
            )
        time.sleep(0.1)
        os.scandir(path.parent).close()  # has a network file system look again
    address, chosen = json.loads(path.read_text())
    return address, chosen


def free_port() -> int:
    """A port nobody listens on here."""
    for port in random.SystemRandom().sample(PORTS, 1000):
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
                return port
            except OSError:
                continue
    raise OSError(f"no free port among 1000 in {PORTS.start}-{PORTS.stop}")


def tell(ending: Ending) -> None:
    """Say on stderr how the command ended, if not well."""
    if ending.code:
        told = ending.told if ending.told.startswith("Traceback") else f"mgd-ssl: {ending.told}"
        print(printable_lines(told), file=sys.stderr)

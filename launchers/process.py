"""One process of a local job: `python -m launchers.process FOLDER COMMAND ...`, started by torch's launcher."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from launchers.records import End, Records
from launchers.task import Place, execute
from mgd_ssl.errors import INTERRUPTED
from mgd_ssl.parent import end_with_parent

LAUNCHER = "MGD_SSL_LAUNCHER"  # pid of the launcher, in the environment of its processes


def main(argv: Sequence[str]) -> int:
    """Run the command, or as much of it as happens before the launcher is gone; returns its exit code."""
    end_with_parent(int(os.environ[LAUNCHER]))
    records, command = Records(Path(argv[0])), argv[1:]
    env = os.environ
    place = Place(
        int(env["RANK"]),
        int(env["WORLD_SIZE"]),
        int(env["LOCAL_RANK"]),
        int(env["LOCAL_WORLD_SIZE"]),
        socket.gethostname(),
        int(env.get("TORCHELASTIC_RESTART_COUNT", 0)),
    )
    ending = execute(command, records, place)
    if place.rank == 0 and ending.code in (0, INTERRUPTED):
        records.write(End(place.attempt, ending.code, requeued=False, told=ending.told))
        if ending.code:
            print(f"mgd-ssl: {ending.told}", file=sys.stderr)
    return ending.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

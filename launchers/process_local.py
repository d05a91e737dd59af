"""One process of a local job: `python -m launchers.process_local FOLDER COMMAND ...`, started by torch's launcher."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from launchers.process import Place, execute
from launchers.records import End, Records
from mgd_ssl.errors import INTERRUPTED, exit_code
from mgd_ssl.printable import printable_lines
from mgd_ssl.run.parent import end_with_parent

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
        if ending.code:
            print(printable_lines(f"mgd-ssl: {ending.told}"), file=sys.stderr)
        return exit_code(lambda: end(records, End(place.attempt, ending.code, requeued=False, told=ending.told)))
    return ending.code


def end(records: Records, record: End) -> int:
    """Record the end; returns its code."""
    records.write(record)
    return record.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

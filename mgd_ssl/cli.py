"""The command `mgd-ssl`: one subcommand a job, imported only when it is called."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from mgd_ssl.commands import COMMANDS, run
from mgd_ssl.errors import exit_code, say


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code (see `exit_code`)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if sys.platform == "win32":  # no locks of POSIX, no fork, other signals
        say("mgd-ssl: Windows itself is not supported: run it in WSL2, where it is Linux")
        return 2
    if not args or args[0] in ("-h", "--help"):
        return told(
            "usage: mgd-ssl COMMAND [OPTIONS]\n",
            *(f"  {name:9} {command.what}" for name, command in COMMANDS.items()),
            "\nmgd-ssl COMMAND --help lists the options of a command.",
        )
    if args[0] == "--version":
        return told(f"mgd-ssl {version('mgd_ssl')}")
    return exit_code(lambda: run(args[0], args[1:]))


def told(*lines: str) -> int:
    """Print lines, as many as the reader wants: `mgd-ssl --help | head -3` is no error."""
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
    return 0


if __name__ == "__main__":
    sys.exit(main())

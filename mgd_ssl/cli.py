"""The command `mgd-ssl`: one subcommand a job, imported only when it is called."""

import sys
from collections.abc import Sequence
from importlib.metadata import version

from mgd_ssl.commands import COMMANDS, run
from mgd_ssl.errors import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code (see `exit_code`)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print("usage: mgd-ssl COMMAND [OPTIONS]\n")
        print("\n".join(f"  {name:9} {command.what}" for name, command in COMMANDS.items()))
        print("\nmgd-ssl COMMAND --help lists the options of a command.")
        return 0
    if args[0] == "--version":
        print(f"mgd-ssl {version('mgd_ssl')}")
        return 0
    return exit_code(lambda: run(args[0], args[1:]))


if __name__ == "__main__":
    sys.exit(main())

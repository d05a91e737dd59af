"""The command `mgd-ssl`: one subcommand a job, imported only when it is called."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from mgd_ssl.errors import INTERRUPTED, Interrupted, TrainingError, UserError, nearest

# name: (module whose `main` takes the remaining arguments and returns an exit code, what it does)
COMMANDS = {
    "demo": ("mgd_ssl.demo", "make a small image set, pretrain a teacher and students on it, print their table"),
    "pretrain": ("mgd_ssl.pretrain", "pretrain a student with MoCo v2, guided by a teacher through MGD"),
    "knn": ("mgd_ssl.knn_command", "k-NN accuracy of a trained backbone on a labelled folder"),
    "report": ("mgd_ssl.report", "write an HTML report on runs, side by side"),
    "bench": ("mgd_ssl.bench", "measure the training step against the bare networks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code: 0 done, 2 bad input, 3 training stopped, 75 interrupted and saved."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print("usage: mgd-ssl COMMAND [OPTIONS]\n")
        print("\n".join(f"  {name:9} {what}" for name, (_, what) in COMMANDS.items()))
        print("\nmgd-ssl COMMAND --help lists the options of a command.")
        return 0
    try:
        if args[0] not in COMMANDS:
            raise UserError(f"no command {args[0]!r}{nearest(args[0], list(COMMANDS))}: choose {', '.join(COMMANDS)}")
        module, _ = COMMANDS[args[0]]
        code: int = import_module(module).main(args[1:])
        return code
    except Interrupted as stopped:
        return _fail(str(stopped), INTERRUPTED)
    except UserError as error:
        return _fail(str(error), 3 if isinstance(error, TrainingError) else 2)


def _fail(message: str, code: int) -> int:
    if os.environ.get("RANK", "0") == "0":
        print(f"mgd-ssl: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

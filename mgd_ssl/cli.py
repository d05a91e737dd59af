"""The command `mgd-ssl`: one subcommand a job, imported only when it is called."""

import sys
from collections.abc import Sequence
from importlib import import_module

from mgd_ssl.errors import UserError, exit_code, nearest

# name: (module whose `main` takes the remaining arguments and returns an exit code, what it does)
COMMANDS = {
    "demo": ("mgd_ssl.demo", "make a small image set, pretrain a teacher and students on it, print their table"),
    "pretrain": ("mgd_ssl.pretrain", "pretrain a student with MoCo v2, guided by a teacher through MGD"),
    "linear": ("linear_eval.linear", "linear classifiers on a frozen backbone, by published protocols or a search"),
    "knn": ("mgd_ssl.knn_command", "k-NN accuracy of a trained backbone on a labelled folder"),
    "pack": ("mgd_ssl.pack", "rewrite a folder of images once into tar shards, reduced if you like"),
    "report": ("mgd_ssl.report", "write an HTML report on runs, side by side"),
    "bench": ("mgd_ssl.bench", "measure the training step against the bare networks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code (see `exit_code`)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print("usage: mgd-ssl COMMAND [OPTIONS]\n")
        print("\n".join(f"  {name:9} {what}" for name, (_, what) in COMMANDS.items()))
        print("\nmgd-ssl COMMAND --help lists the options of a command.")
        return 0
    return exit_code(lambda: run(args[0], args[1:]))


def run(command: str, args: Sequence[str]) -> int:
    """Import the command's module and call its `main`."""
    if command not in COMMANDS:
        raise UserError(f"no command {command!r}{nearest(command, list(COMMANDS))}: choose {', '.join(COMMANDS)}")
    module, _ = COMMANDS[command]
    code: int = import_module(module).main(args)
    return code


if __name__ == "__main__":
    sys.exit(main())

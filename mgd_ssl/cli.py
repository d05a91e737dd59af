"""The command `mgd-ssl`: one subcommand a job, imported only when it is called."""

import sys
from collections.abc import Sequence

from mgd_ssl.errors import UserError

COMMANDS = {
    "demo": "make a small image set, pretrain a teacher and students on it, print their table",
    "pretrain": "pretrain a student with MoCo v2, guided by a teacher through MGD",
    "linear": "train linear classifiers on a frozen backbone, by published protocols or a search",
    "bench": "measure the training step against the bare networks",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code: 0 done, 2 bad input, 3 training stopped, 75 interrupted and saved."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print("usage: mgd-ssl COMMAND [OPTIONS]\n")
        print("\n".join(f"  {name:9} {what}" for name, what in COMMANDS.items()))
        print("\nmgd-ssl COMMAND --help lists the options of a command.")
        return 0
    try:
        return _run(args[0], args[1:])
    except UserError as error:
        from mgd_ssl.errors import TrainingError

        return _fail(str(error), 3 if isinstance(error, TrainingError) else 2)


def _run(command: str, args: list[str]) -> int:
    if command == "pretrain":
        return _pretrain(args)
    if command == "demo":
        from mgd_ssl.demo import main as demo

        return demo(args)
    if command == "linear":
        from linear_eval.linear import main as linear

        return linear(args)
    if command == "bench":
        from mgd_ssl.bench import main as bench

        return bench(args)
    from mgd_ssl.errors import nearest

    return _fail(f"no command {command!r}{nearest(command, list(COMMANDS))}: choose {', '.join(COMMANDS)}", 2)


def _pretrain(args: list[str]) -> int:
    from mgd_ssl.config import PretrainConfig, parse

    config = parse(PretrainConfig, args, "mgd-ssl pretrain")
    from mgd_ssl.pretrain import Interrupted, pretrain
    from mgd_ssl.runtime import INTERRUPTED

    try:
        result = pretrain(config)
    except Interrupted as stopped:
        return _fail(str(stopped), INTERRUPTED)
    return _say(f"finished: {result.encoder}")


def _say(line: str) -> int:
    import os

    if os.environ.get("RANK", "0") == "0":
        print(line)
    return 0


def _fail(message: str, code: int) -> int:
    import os

    if os.environ.get("RANK", "0") == "0":
        print(f"mgd-ssl: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

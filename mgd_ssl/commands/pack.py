"""`mgd-ssl pack`: images rewritten once into tar shards."""

from collections.abc import Sequence
from pathlib import Path

from mgd_ssl.command_line import parse
from mgd_ssl.data.config import PackConfig
from mgd_ssl.printable import printable


def main(argv: Sequence[str]) -> int:
    """Pack and say what became of it."""
    config = parse(PackConfig, argv, "mgd-ssl pack")
    from mgd_ssl.data.pack import pack  # torch is loaded once the settings are known to be right

    result = pack(config)
    labelled = f"{result.classes} classes" if result.classes else "no labels"
    print(f"{result.images} images ({labelled}) in {result.shards} shards, {result.megabytes:.1f} MB")
    if result.left_out:
        print(f"{result.left_out} unreadable images are left out: see {printable(Path(result.out) / 'skipped.jsonl')}")
    print(f"finished: pass {printable(result.out)} in place of the folder")
    return 0

"""`mgd-ssl embed`: the features of all images of a source in a file."""

import os
from collections.abc import Sequence
from pathlib import Path

from mgd_ssl.command_line import parse
from mgd_ssl.evaluation.config import EmbedConfig
from mgd_ssl.printable import printable


def main(argv: Sequence[str]) -> int:
    """Embed, say what is where, and print the nearest images where one is searched."""
    config = parse(EmbedConfig, argv, "mgd-ssl embed")
    from mgd_ssl.evaluation.embedding import embed  # torch is loaded once the settings are known to be right

    told = embed(config)
    if os.environ.get("RANK", "0") != "0":
        return 0
    shape = " x ".join(map(str, told.shape))
    print(
        printable(f"{told.path}: {told.num_images} images, {shape} numbers each{', as before' if told.found else ''}")
    )
    if told.unreadable:
        first = next(iter(told.unreadable.items()))
        print(printable(f"{len(told.unreadable)} unreadable images are rows of nan, first {first[0]} ({first[1]})"))
    for place, each in enumerate(told.neighbours, start=1):
        print(printable(f"{place:4}  {each.similarity:.4f}  {each.name}{f'  {each.label}' if each.label else ''}"))
    return 0


def check(argv: Sequence[str]) -> Path:
    """The folder of the file, when the settings are valid.

    Raises:
        UserError: when they are not.
    """
    return parse(EmbedConfig, argv, "mgd-ssl embed").out.absolute().parent

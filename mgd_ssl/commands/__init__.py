"""The commands of `mgd-ssl`, by name; their modules are imported only when they are called."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from mgd_ssl.errors import UserError, nearest


class Command(NamedTuple):
    """One command."""

    module: str  # whose `main` takes the remaining arguments and returns an exit code
    what: str  # it does
    launched: bool = False  # can be a job: its module has `check`, which takes the arguments too


COMMANDS = {
    "demo": Command(
        "mgd_ssl.commands.demo", "make a small image set, pretrain a teacher and students on it, print their table"
    ),
    "pretrain": Command(
        "mgd_ssl.commands.pretrain", "pretrain a student with MoCo v2, guided by a teacher through MGD", True
    ),
    "classify": Command(
        "mgd_ssl.commands.classify",
        "train a classifier on labelled images, guided by a teacher through MGD and KD",
        True,
    ),
    "detect": Command(
        "mgd_ssl.commands.detect",
        "train a detector on COCO's format, guided by a teacher through MGD; evaluate one",
        True,
    ),
    "linear": Command(
        "linear_eval.command", "linear classifiers on a frozen backbone, by published protocols or a search", True
    ),
    "knn": Command("mgd_ssl.commands.knn", "k-NN accuracy of a trained backbone on a labelled folder", True),
    "embed": Command(
        "mgd_ssl.commands.embed",
        "write the features of all images of a source to a file, and search it by an image",
        True,
    ),
    "export": Command(
        "mgd_ssl.commands.export", "write a network for torchvision, timm, ONNX, ..., load it back there and compare"
    ),
    "teachers": Command("mgd_ssl.commands.teachers", "list the files that can teach, or tell what a given file holds"),
    "pack": Command("mgd_ssl.commands.pack", "rewrite a folder of images once into tar shards, reduced if you like"),
    "bags": Command("mgd_ssl.commands.bags", "find the images a teacher holds for alike, for the term bingo", True),
    "doctor": Command(
        "mgd_ssl.commands.doctor", "look at machine, images and teacher, take a few steps, say how long a run takes"
    ),
    "launch": Command("launchers.launch", "run a training or an evaluation as processes of this host or as Slurm jobs"),
    "runs": Command("launchers.runs", "a table of runs and their jobs: state, epoch, loss, accuracy, speed"),
    "report": Command("mgd_ssl.commands.report", "write an HTML report on runs, side by side"),
    "bench": Command("mgd_ssl.commands.bench", "measure the training step and the views, and say what limits a run"),
}


def find(name: str, known: Sequence[str] = tuple(COMMANDS)) -> Command:
    """A command by its name.

    Raises:
        UserError: when it is not among the known ones.
    """
    if name not in known:
        raise UserError(f"no command {name!r}{nearest(name, list(known))}: choose {', '.join(known)}")
    return COMMANDS[name]


def run(name: str, args: Sequence[str]) -> int:
    """Import the command's module and call its `main`; returns its exit code."""
    code: int = import_module(find(name).module).main(args)
    return code


def check(name: str, args: Sequence[str]) -> Path:
    """Check the settings of a command that is to be launched, without looking at images or weights.

    Returns:
        The folder the command would write to.

    Raises:
        UserError: when the command cannot be launched, or a setting is at fault.
    """
    command = find(name, [name for name, command in COMMANDS.items() if command.launched])
    folder: Path = import_module(command.module).check(args)
    return folder

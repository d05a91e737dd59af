"""`mgd-ssl launch local|slurm [OPTIONS] -- COMMAND ...`: check the command, then run or submit it."""

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from launchers import config as settings
from launchers.config import LocalConfig, SlurmConfig
from launchers.sweep import Element, read_sweep
from mgd_ssl.command_line import parse
from mgd_ssl.commands import check
from mgd_ssl.config import PretrainConfig
from mgd_ssl.errors import UserError, nearest
from mgd_ssl.printable import is_printable, printable
from mgd_ssl.settings import brief

if TYPE_CHECKING:
    from launchers.slurm import Job

USAGE = """usage: mgd-ssl launch local|slurm [OPTIONS] -- COMMAND [COMMAND'S OPTIONS]

  local   processes of this host
  slurm   a Slurm job, or an array of them

COMMAND is pretrain, classify, detect, linear, knn, embed or bags, with the options it has without a launcher.
mgd-ssl launch local --help and mgd-ssl launch slurm --help list the launchers' options."""
CONFIGS = Path(settings.__file__).parent / "configs"

Config = TypeVar("Config", LocalConfig, SlurmConfig)


def main(argv: Sequence[str]) -> int:
    """Split the line at its first `--` and launch; returns an exit code.

    Raises:
        UserError: when a word holds a control character, or the launch is at fault.
    """
    check_words(argv)
    own, command = list(argv), list[str]()
    if "--" in own:
        at = own.index("--")
        own, command = own[:at], own[at + 1 :]
    if not own or own[0] in ("-h", "--help"):
        print(USAGE)
        if own:
            raise SystemExit(0)
        return 2
    launchers = {"local": local, "slurm": slurm}
    if own[0] not in launchers:
        raise UserError(f"no launcher {own[0]!r}{nearest(own[0], list(launchers))}: choose {', '.join(launchers)}")
    if not command and not {"-h", "--help"} & set(own):  # before its options are taken for the launcher's
        raise UserError("there is no command: write it after --, for instance `-- pretrain --config ...`")
    return launchers[own[0]](own[1:], command)


def check_words(words: Sequence[str | Path]) -> None:
    """Raise UserError unless all of these stay on their line, in a batch script or on a terminal."""
    for word in words:
        if not is_printable(word):
            raise UserError(f"the launcher got {brief(word)}: take line breaks and control characters out")


def local(own: Sequence[str], command: Sequence[str]) -> int:
    """`mgd-ssl launch local`."""
    config = parse(LocalConfig, own, "mgd-ssl launch local")
    command, run = with_out(command, config.out)
    from launchers.local import launch_local  # imports torch, which --help need not

    return launch_local(config, command, run)


def slurm(own: Sequence[str], command: Sequence[str]) -> int:
    """`mgd-ssl launch slurm`."""
    config = parse(SlurmConfig, own, "mgd-ssl launch slurm", CONFIGS)
    elements = [Element("", [])] if config.array is None else read_sweep(config.array)
    if config.array is not None and config.out is None:
        raise UserError("out is not set: with --array pass --out before the --, the folder of all runs")
    commands, runs = [], []
    for element in elements:
        out = config.out / element.name if config.out is not None and element.name else config.out
        full, run = with_out([*command, *element.flags], out)
        commands.append(full)
        runs.append(run)
    chained = [(words[0], [evaluation(words, full, run) for full, run in zip(commands, runs, strict=True)])
               for words in map(words_of, config.then)]  # fmt: skip
    return submit_all(config, commands, runs, chained)


def submit_all(
    config: SlurmConfig,
    commands: Sequence[Sequence[str]],
    runs: Sequence[Path],
    chained: Sequence[tuple[str, Sequence[Sequence[str]]]],
) -> int:
    """Submit the command and those that follow it; with --wait, see them through."""
    from launchers.slurm import batch_script, check_free, check_submission, home_of, submit
    from mgd_ssl.run.lock import JOBS

    folder = (config.out or runs[0]).absolute().name
    # an evaluation takes one node; a --nodelist of several would have it refused
    alone = config.model_copy(update={"nodes": 1, "nodelist": config.nodelist if config.nodes == 1 else None})
    steps = [(config, f"{commands[0][0]}-{folder}", commands)]
    steps += [(alone, f"{word}-{folder}", evaluations) for word, evaluations in chained]
    after = "aftercorr" if len(runs) > 1 else "afterok"
    if config.dry_run:
        for number, (each, name, lines) in enumerate(steps):
            print(batch_script(each, name, home_of(runs) / JOBS, len(runs), f"{after}:JOB" if number else None))
            for full in lines:
                print(f"# mgd-ssl {shlex.join(full)}")
        return 0
    for run in runs:
        check_free(run)
    for each, name, _ in steps:
        check_submission(batch_script(each, name, home_of(runs), len(runs)))
    jobs: list[Job] = []
    for each, name, lines in steps:
        new = submit(each, name, lines, runs, f"{after}:{jobs[0].number}" if jobs else None)
        what = f"{lines[0][0]} of " if jobs else "", " once it has finished" if jobs else ""
        for job in new:
            print(printable(f"job {job.job_id}: {what[0]}{job.run}{what[1]}, log {job.log}"))
        jobs += new
    if config.wait:
        return see_through(jobs)
    explain(jobs)
    return 0


def see_through(jobs: Sequence["Job"]) -> int:
    """Follow jobs to their end; who stops looking does not stop them.

    Returns:
        Their exit code, or what a shell calls the signal that ended the looking.
    """
    from launchers.follow import follow

    try:
        return follow(jobs)
    except (KeyboardInterrupt, BrokenPipeError) as error:
        print(f"mgd-ssl: job {jobs[0].number} goes on, it is only no longer followed", file=sys.stderr)
        if isinstance(error, BrokenPipeError):  # of `| head`: the interpreter would complain once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        explain(jobs)
        return 128 + signal.SIGINT


def explain(jobs: Sequence["Job"]) -> None:
    """Say how to look at jobs and how to end them."""
    runs = list(dict.fromkeys(job.run for job in jobs))
    shown = " ".join(shlex.quote(os.path.relpath(run)) for run in runs[:3]) + (" ..." if len(runs) > 3 else "")
    print(f"follow: tail -F {shlex.quote(jobs[0].log)}")
    print(f"state:  mgd-ssl runs {shown}")
    print(f"cancel: scancel {jobs[0].number}")


def with_out(command: Sequence[str], out: Path | None) -> tuple[list[str], Path]:
    """The checked command with its --out, and that folder.

    Raises:
        UserError: when its settings are not valid, or there are two different --out.
    """
    full = list(command)
    given = any(word == "--out" or word.startswith("--out=") for word in full)
    if out is not None and not given:
        full += ["--out", str(out)]
    run = check(full[0], full[1:])
    if out is not None and run.absolute() != out.absolute():
        raise UserError(f"--out is {out} before the -- and {run} after it: leave one of them out")
    return full, run


def words_of(line: str) -> list[str]:
    """The words of a --then.

    Raises:
        UserError: when there are none, or a quote is left open.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UserError(f"--then {line!r} cannot be read ({error}): close the quotes") from error
    if not words:
        raise UserError("--then is empty: choose linear or knn")
    return words


def evaluation(words: Sequence[str], pretraining: Sequence[str], run: Path) -> list[str]:
    """The command line of an evaluation of a run that is still to be trained.

    Raises:
        UserError: when it is none, or nothing says on which images.
    """
    if words[0] not in ("linear", "knn"):
        raise UserError(f"--then has {words[0]!r}: choose linear or knn")
    if pretraining[0] != "pretrain":
        raise UserError(f"--then evaluates a run of pretrain, not of {pretraining[0]}: leave it out")
    full = [*words, "--checkpoint", str(run), "--out", str(run)]
    if not any(word == "--data" or word.startswith("--data=") for word in words):
        full += ["--data", str(labelled_folder(pretraining, words[0]))]
    check(full[0], full[1:])
    return full


def labelled_folder(pretraining: Sequence[str], evaluation: str) -> Path:
    """The folder with train/ and val/ that pretraining is monitored or trained on.

    Raises:
        UserError: when there is none.
    """
    config = parse(PretrainConfig, pretraining[1:], "mgd-ssl pretrain")
    for train, val in ((config.knn.train, config.knn.val), (config.data.train, None)):
        if train is None or train.name != "train":
            continue
        folder = train.parent
        if val == folder / "val" or (val is None and (folder / "val").is_dir()):
            return folder
    raise UserError(
        f"--then {evaluation} needs labelled images, DIR/train/<class>/* and DIR/val/<class>/*: "
        f"write --then '{evaluation} --data DIR'"
    )

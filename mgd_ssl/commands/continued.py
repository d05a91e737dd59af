"""`--more-epochs N RUN`: the settings of a run that begins where another one ended."""

from pathlib import Path

from mgd_ssl.config import PretrainConfig
from mgd_ssl.errors import UserError
from mgd_ssl.settings import MAX_SEED, UNSET, SettingError, incomplete

MORE_EPOCHS = "--more-epochs"


def settings_after(args: list[str]) -> PretrainConfig:
    """Settings of a run that goes on with another one, whose flags may still override them; takes the words off `args`.

    They are those of the finished run but for three: the weights it begins with are the last ones of that run with its
    projection head, the epochs are counted anew, and the seed is the next one, as the views of the same epochs would be
    those that it has seen.

    Raises:
        UserError: when the words after the flag are no number and no finished run, or a file of settings is given too.
    """
    at = args.index(MORE_EPOCHS)
    flag, *words = args[at : at + 3]
    if len(words) < 2 or not (words[0].isascii() and words[0].isdigit()) or int(words[0]) < 1:
        raise UserError(f"{flag} takes a number of epochs and a run's folder: pass {flag} 100 RUN, say")
    del args[at : at + 3]
    if any(arg == "--config" or arg.startswith("--config=") for arg in args):
        raise UserError(f"{flag} takes the settings of the run: leave --config out, flags override single ones")
    run = Path(words[1])
    saved = _saved(run)
    changed = {
        "out": UNSET, "student_weights": last_checkpoint(run), "seed": (saved["seed"] + 1) % MAX_SEED,
        "optim": saved["optim"] | {"epochs": int(words[0])},
    }  # fmt: skip
    try:
        with incomplete():
            return PretrainConfig(**saved | changed)
    except SettingError as error:
        raise UserError(
            f"{run / 'config.json'} does not fit this version ({error}): pass its settings by flags"
        ) from error


def _saved(run: Path) -> dict:  # type: ignore[type-arg]
    from mgd_ssl.run.folder import saved_description  # loads torch

    if not (run / "config.json").is_file():
        raise UserError(f"{run} holds no run: pass what was --out of `mgd-ssl pretrain`")
    description = saved_description(run)
    config = description.get("config")
    if "task" in description or not isinstance(config, dict) or not {"seed", "optim"} <= config.keys():
        raise UserError(f"{run} holds no pretraining: pass what was --out of `mgd-ssl pretrain`")
    return config


def last_checkpoint(run: Path) -> Path:
    """The last state of a finished run, which has its projection head; encoder.pt has none.

    Raises:
        UserError: when the run is not finished, or its checkpoints are gone.
    """
    from mgd_ssl.run.checkpoint import Checkpoints

    if not (run / "result.json").is_file():
        raise UserError(f"{run} is not finished: run its own command again, which continues it")
    paths = Checkpoints(run / "checkpoints").paths()
    if not paths:
        raise UserError(
            f"{run} has no checkpoint left to go on from: begin with its backbone alone, by --student-weights {run}"
        )
    return paths[0]

"""Settings from TOML files and flags: defaults < file < command line."""

import io
import os
import tomllib
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import tyro

from mgd_ssl.errors import UserError, nearest
from mgd_ssl.refused_words import unknown_word, wrong_value
from mgd_ssl.setting_keys import given_keys, with_given
from mgd_ssl.settings import RefusedFlag, Settings, first_unset, incomplete, keys_of, parsing

MAX_NESTING = 8  # of a TOML file; settings have two levels


Model = TypeVar("Model", bound=Settings)


CONFIGS = Path(str(resources.files("mgd_ssl"))) / "configs"


def find_config(name: str, folder: Path = CONFIGS, what: str = "config file") -> Path:
    """A TOML file by path, or by the name of one in a folder that comes with the package (`imagenet_r50_r18_mgd`)."""
    path = Path(name)
    if os.path.isfile(path):  # not Path.is_file, which raises for some names
        return path
    packaged = folder / f"{path.stem}.toml"
    if path.parent.name in ("", folder.name) and packaged.is_file():
        return packaged
    known = sorted(file.stem for file in folder.glob("*.toml"))
    raise UserError(f"no {what} {name!r}{nearest(name, known)}: pass a path or one of {', '.join(known)}")


def load_toml(model: type[Model], path: Path) -> Model:
    """Settings from a TOML file over the defaults.

    Raises:
        UserError: naming the file and the key at fault.
    """
    try:
        return model(**read_toml(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        UserError: when it cannot be read, is no TOML, or is nested more deeply than any settings are.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): pass a TOML file") from error
    except RecursionError as error:
        raise UserError(_too_deep(path)) from error
    except ValueError as error:  # of the parser, the decoder, or for numbers of thousands of digits
        raise UserError(f"{path} is not valid TOML ({error}): mend that line") from error
    level: list[Any] = [content]
    for _ in range(MAX_NESTING):  # a loop: recursion would end where the nesting does not
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise UserError(_too_deep(path))
    return content


def _too_deep(path: Path) -> str:
    return f"{path} is nested more than {MAX_NESTING} levels deep: settings have two, [group] and key"


def parse(
    model: type[Model], argv: Sequence[str], prog: str, configs: Path = CONFIGS, default: Model | None = None
) -> Model:
    """Settings from a command line; `--config FILE` (anywhere in it) is read first, flags override it.

    Args:
        model: the settings.
        argv: the arguments.
        prog: name of the program, for its help.
        configs: folder whose TOML files --config finds by name.
        default: settings that flags override where no file is read; None: the usual ones.

    Raises:
        UserError: naming the setting at fault by its dotted key, or the word that belongs to none.
        SystemExit: after --help.
    """
    args, file = _take_config(_with_words(list(argv)))
    description = f"{model.__doc__}\n\n--config NAME|FILE.toml reads settings from a file; flags override it."
    with incomplete():
        beginning = load_toml(model, find_config(file, configs)) if file else default or model()
        settings = _read_flags(beginning, args, prog, description)
    if missing := first_unset(settings):
        raise UserError(missing)
    return with_given(settings, given_keys(beginning) | _named(model, args))  # the parser gives all


def _read_flags(beginning: Model, args: Sequence[str], prog: str, description: str) -> Model:
    """Settings with those changed that flags name; `UserError` and `SystemExit` as in `parse`."""
    model, told = type(beginning), io.StringIO()  # what the parser says of an error, in a box of its own
    token = parsing.set(True)
    try:
        with redirect_stderr(told):
            settings, unknown = tyro.cli(
                model, args=args, default=beginning, prog=prog, description=description, return_unknown_args=True
            )
    except RefusedFlag as refused:
        raise UserError(f"{_key_of_group(model, refused.group)}{refused}") from refused
    except SystemExit as stop:
        if not stop.code:  # after --help
            raise
        parsing.set(False)
        raise UserError(wrong_value(beginning, args, prog)) from stop
    finally:
        parsing.reset(token)
    if unknown:
        raise UserError(unknown_word(model, unknown[0], prog))
    return settings


def _named(model: type[Settings], args: Sequence[str]) -> set[str]:
    """Dotted names of the settings whose flags are among some words."""
    known = keys_of(model)
    words = {arg.removeprefix("--").partition("=")[0].replace("-", "_") for arg in args if arg.startswith("--")}
    words |= {".".join([*group, last.removeprefix("no_")]) for *group, last in (word.split(".") for word in words)}
    return words & set(known)


def _key_of_group(model: type[Settings], group: type[Settings], prefix: str = "") -> str:
    """`optim.` for OptimConfig; empty for the model itself."""
    for name, field in model.model_fields.items():
        if field.annotation is group:
            return f"{prefix}{name}."
        inner = field.annotation
        if not (isinstance(inner, type) and issubclass(inner, Settings)):
            continue
        if found := _key_of_group(inner, group, f"{prefix}{name}."):
            return found
    return ""


def _with_words(args: list[str]) -> list[str]:
    """Flags of a switch with a third position as the parser wants them: `--runtime.compile` alone means True, and
    `--runtime.no-compile` False."""
    found = []
    for arg, following in zip(args, [*args[1:], "--"], strict=False):
        if arg == "--runtime.no-compile":
            found += ["--runtime.compile", "False"]
        else:
            found.append(arg)
            if arg == "--runtime.compile" and following.startswith("-"):
                found.append("True")
    return found


def _take_config(args: list[str]) -> tuple[list[str], str | None]:
    for i, arg in enumerate(args):
        if arg == "--config":
            if i + 1 == len(args):
                raise UserError("--config needs a value: the path or the name of a TOML file")
            return args[:i] + args[i + 2 :], args[i + 1]
        if arg.startswith("--config="):
            return args[:i] + args[i + 1 :], arg.removeprefix("--config=")
    return args, None

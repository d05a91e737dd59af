"""What is wrong with a command line that the parser refused, in one sentence like those on a file's settings.

The parser finds fault with words before there are settings; which word it was is found here by the settings' own types.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

import tyro
from pydantic.fields import FieldInfo

from mgd_ssl.setting_keys import changed
from mgd_ssl.settings import SettingError, Settings, brief, group_of, nearest_key

NOTHING = ("None", "none")  # as words


def unknown_word(model: type[Settings], word: str, prog: str) -> str:
    """The sentence on a word that is neither an option nor the value of one."""
    remedy = f"{prog} --help lists its options"
    if not word.startswith("--"):
        return f"{brief(word)} belongs to no option of {prog}: {remedy}"
    flag, known = word.partition("=")[0], dict(_fields(model))
    near = nearest_key(key_of(flag), list(known))
    return f"{flag} is no option of {prog}{near and f', did you mean {flag_of(near)}?'}: {remedy}"


def wrong_value(settings: Settings, args: Sequence[str], prog: str) -> str:
    """The sentence on the first option whose value is not of its type.

    Args:
        settings: those that the options were to change.
        args: the command line that the parser refused.
        prog: name of the program.
    """
    known = dict(_fields(type(settings)))
    for key, words in _options(args):
        annotation = known[key].annotation if key in known else bool
        if annotation is bool:  # an option without a value, or one of its negations
            continue
        if not words and not _holds(annotation, tuple) and not _holds(annotation, bool):
            return f"{flag_of(key)} has no value: write one after it, {prog} --help says which"
        if _is_fraction(words, annotation):
            return f"{key} is {brief(words[0])}: give a whole number"
        try:
            changed(settings, {key: _value(words, annotation)})
        except SettingError as error:
            return str(error)
    return f"a value is not written as its option wants it: {prog} --help says how"


def key_of(flag: str) -> str:
    """`moco.queue_size` of `--moco.queue-size`."""
    return flag.removeprefix("--").replace("-", "_")


def flag_of(key: str) -> str:
    """`--moco.queue-size` of `moco.queue_size`."""
    return f"--{key.replace('_', '-')}"


def _fields(model: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All settings that have options, by these: dotted names, with another last part where one is given."""
    for name, field in model.model_fields.items():
        if (group := group_of(field)) is not None:
            yield from _fields(group, f"{prefix}{name}.")
        elif tyro.conf.Positional not in field.metadata:
            own = [given for mark in field.metadata if (given := getattr(mark, "name", None))]
            yield f"{prefix}{own[0] if own else name}", field


def _options(args: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Every option on a command line by its key, with the words that follow it."""
    for at, arg in enumerate(args):
        if arg.startswith("--"):
            flag, is_given, value = arg.partition("=")
            following = itertools.takewhile(lambda word: not word.startswith("--"), args[at + 1 :])
            yield key_of(flag), [value] if is_given else list(following)


def _value(words: list[str], annotation: Any) -> Any:
    """What a file would have in the place of some words."""
    if _holds(annotation, tuple):
        return words
    if not words:  # of a switch
        return True
    return None if words[0] in NOTHING and _holds(annotation, type(None)) else words[0]


def _is_fraction(words: list[str], annotation: Any) -> bool:
    """Whether a number is written with a point where the parser wants none, as 3.0; in a file that is 3."""
    return _holds(annotation, int) and not _holds(annotation, float) and "." in words[0]


def _holds(annotation: Any, kind: type) -> bool:
    """Whether a type is of a kind, or a union with one that is."""
    return kind in (annotation, get_origin(annotation)) or any(
        _holds(part, kind) for part in get_args(annotation) if get_origin(annotation) is not tuple
    )

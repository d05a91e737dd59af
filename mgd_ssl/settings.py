"""How settings work: frozen models, from defaults < TOML file < command line.

The line under a field is its documentation, in `--help` too.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

MAX_SEED = 2**63 - 1


SHOWN = 80  # characters of a wrong value in a message
ALIKE = 0.7  # of difflib: `onx` is meant for onnx, `gpu` not for cpu


UNSET = Path("<required>")  # stands for a required setting until everything was read; --help shows it


class Required(NamedTuple):
    """Marks a path without a default, which the user has to give."""

    remedy: str  # what to pass: `--out, the folder this run may write to`


class Free(NamedTuple):
    """Marks a setting, or a group, that may differ between the parts of one run: it changes neither weights nor
    matching, or by rounding alone."""


FREE = Free()


class Automatic(NamedTuple):
    """Marks a setting that follows from the data and the machine where nobody gives it; its default is for ImageNet."""


AUTOMATIC = Automatic()


class SettingError(ValueError):
    """One sentence on one setting, which starts with its key."""


class RefusedFlag(Exception):
    """A `SettingError` while tyro makes settings of flags: it would print a ValueError in a box of its own words."""

    def __init__(self, group: "type[Settings]", sentence: str) -> None:
        super().__init__(sentence)
        self.group = group


parsing = ContextVar("parsing", default=False)  # whether tyro is at work
drafting = ContextVar("drafting", default=False)  # whether required settings may still be missing


class Settings(BaseModel):
    """Base of all groups: frozen, and an unknown key is an error.

    A field validator raises ValueError with the remedy alone, a model validator with the whole sentence.

    Raises:
        SettingError: one sentence that names the first setting at fault by its dotted key, its value and a remedy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        if unknown := _unknown_key(type(self), values):
            near = nearest_key(unknown, keys_of(type(self)))
            raise SettingError(f"{shortened(unknown)} is no setting{near and f', did you mean {near!r}?'}")
        complete = not drafting.get()
        token = drafting.set(True)  # in the groups: a wrong value is told before a missing one
        try:
            super().__init__(**_with_unset(type(self), values))
        except ValidationError as error:
            if parsing.get():
                raise RefusedFlag(type(self), _sentence(error)) from error
            raise SettingError(_sentence(error)) from error
        finally:
            drafting.reset(token)
        if complete and (missing := first_unset(self)):
            raise SettingError(missing)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """`lr = true` would be taken for 1."""
        wanted = cls.model_fields[info.field_name or ""].annotation
        if bool not in (wanted, *get_args(wanted)) and any(isinstance(leaf, bool) for leaf in _leaves(value)):
            raise ValueError("true and false are for switches, give what its help text asks for")
        return value

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        """Numbers fit 64 bits, and no path or word holds a character that the system does not take."""
        for name in type(self).model_fields:
            for leaf in _leaves(getattr(self, name)):
                if isinstance(leaf, int) and abs(leaf) > MAX_SEED:
                    raise ValueError(f"{name} is {brief(leaf)}: set it below 2**63")
                if isinstance(leaf, str | Path) and "\0" in str(leaf):
                    raise ValueError(f"{name} is {brief(leaf)}: take the zero character out")
        return self


S = TypeVar("S", bound=Settings)


def group_of(field: FieldInfo) -> type[Settings] | None:
    """The model of a field that is a group of settings."""
    kind: Any = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def _with_unset(model: type[Settings], values: dict[str, Any]) -> dict[str, Any]:
    """The values, with `UNSET` for what is required and missing, in groups too."""
    filled = dict(values)
    for name, field in model.model_fields.items():
        if any(isinstance(mark, Required) for mark in field.metadata):
            filled.setdefault(name, UNSET)
        elif (group := group_of(field)) is not None and (field.is_required() or isinstance(filled.get(name), dict)):
            given = filled.get(name, {})
            filled[name] = _with_unset(group, given) if isinstance(given, dict) else given
    return filled


def first_unset(settings: Settings, prefix: str = "") -> str:
    """One sentence on the first required setting that is missing, or an empty string."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings) and (missing := first_unset(value, f"{prefix}{name}.")):
            return missing
        for mark in field.metadata:
            if isinstance(mark, Required) and value == UNSET:
                return f"{prefix}{name} is not set: pass {mark.remedy}"
    return ""


@contextmanager
def incomplete() -> Iterator[None]:
    """Within it required settings may be missing; `UNSET` stands for them."""
    token = drafting.set(True)
    try:
        yield
    finally:
        drafting.reset(token)


def _leaves(value: Any) -> Iterator[Any]:
    """A value, or all values in its lists."""
    if isinstance(value, list | tuple):
        for element in value:
            yield from _leaves(element)
    else:
        yield value


def _unknown_key(model: type[Settings], values: dict[str, Any]) -> str:
    """Dotted name of the first key that is no field of the model or of its groups, or an empty string."""
    for name, value in values.items():
        if name not in model.model_fields:
            return name
        group = model.model_fields[name].annotation
        if not (isinstance(group, type) and issubclass(group, Settings) and isinstance(value, dict)):
            continue
        if unknown := _unknown_key(group, value):
            return f"{name}.{unknown}"
    return ""


def nearest_key(key: str, known: list[str]) -> str:
    """The known dotted name with the closest last part, in the same group where there are several; empty if none."""
    group, _, last = key.rpartition(".")
    by_last: dict[str, str] = {}
    for other in sorted(known, key=lambda other: other.rpartition(".")[0] != group):
        by_last.setdefault(other.rpartition(".")[2], other)
    matches = difflib.get_close_matches(last, by_last, n=1, cutoff=ALIKE)
    return by_last[matches[0]] if matches else ""


REMEDIES = {
    "greater_than": "set it above {gt}",
    "greater_than_equal": "set it to {ge} or more",
    "less_than": "set it below {lt}",
    "less_than_equal": "set it to {le} or less",
    "finite_number": "give a finite number",
    "literal_error": "choose {expected}",
    "int_from_float": "give a whole number",
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "int_parsing_size": "give a smaller number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "string_type": "write text, in quotes",
    "string_unicode": "write text without broken characters",
    "string_pattern_mismatch": "write what matches {pattern}",
    "string_too_long": "write {max_length} characters at most",
    "path_type": "write a path, in quotes",
    "tuple_type": "write a list",
    "too_short": "give {min_length} values or more",
    "too_long": "give {max_length} values at most",
    "missing": "give it too",
    "model_type": "write its settings below a line with its name in brackets",
    "dict_type": "write its settings below a line with its name in brackets",
}  # pydantic's kinds of errors -> what to do; of the others its own words are shown


def _sentence(error: ValidationError) -> str:
    """`optim.lr is -1: set it above 0`, of the first setting at fault."""
    first = error.errors()[0]
    key, context = ".".join(str(part) for part in first["loc"]), first.get("ctx", {})
    bounds = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
    known = REMEDIES.get(first["type"])
    remedy = known.format_map(bounds) if known else f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    if first["type"] == "value_error":
        cause = context["error"]
        if not key:  # of a whole group
            return str(cause)
        if isinstance(cause, SettingError):  # raised by a group, in which the key begins
            return f"{key}.{cause}"
        remedy = str(cause)
    near = _nearest_choice(first["input"], context["expected"]) if first["type"] == "literal_error" else ""
    return f"{key} is {'missing' if first['type'] == 'missing' else brief(first['input'])}{near}: {remedy}"


def _nearest_choice(value: object, choices: str) -> str:
    """`, did you mean 'onnx'?` of the choices as pydantic lists them, in quotes."""
    words = re.findall("'([^']*)'", choices)
    matches = difflib.get_close_matches(str(value), words, n=1, cutoff=ALIKE)
    return f", did you mean {matches[0]!r}?" if matches else ""


def brief(value: object) -> str:
    """A value as a message shows it: as Python writes it, and not all of it where it is long."""
    try:
        return shortened(repr(str(value) if isinstance(value, Path) else value))
    except (ValueError, RecursionError):  # more digits than Python writes
        return "too long to be shown"


def shortened(text: str) -> str:
    """At most `SHOWN` characters."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


Values = TypeVar("Values", bound=Sequence[Any])


def each_once(values: Values) -> Values:
    """The values of a setting, for a field validator.

    Raises:
        ValueError: when one is there twice.
    """
    if len(set(values)) < len(values):
        raise ValueError("give each value once")
    return values


def keys_of(model: type[Settings], prefix: str = "") -> list[str]:
    """Dotted names of all fields of a model and of its groups."""
    keys = []
    for name, field in model.model_fields.items():
        if (group := group_of(field)) is not None:
            keys += keys_of(group, f"{prefix}{name}.")
        keys.append(f"{prefix}{name}")
    return keys

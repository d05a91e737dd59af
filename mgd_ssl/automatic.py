"""Settings that follow from the data and the machine where nobody gives them.

Such a setting is None until a command has looked at the images. Then it is filled, once, and is a number from there on:
in the run's `config.json`, for a resume, and for whoever reads it. That is why type checkers see the number alone.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from pydantic import BeforeValidator

from mgd_ssl.settings import Settings, flattened

AUTO = "auto"  # what a user may write, and what --help shows

Model = TypeVar("Model", bound=Settings)


class Mark:
    """Marks a setting that may be left to the data."""


MARK = Mark()


def _whole(text: str) -> float:
    return int(text) if text.lstrip("+-").isdigit() else float(text)  # a fraction is told of by the model


def _flag(metavar: str, kind: Callable[[str], float], count: int = 1) -> Any:
    """How a flag of such a setting reads its words."""

    def read(words: list[str]) -> Any:
        if words == [AUTO] or words == ["None"]:
            return None
        if len(words) != count:
            raise ValueError(f"give {metavar} or {AUTO}")
        values = tuple(map(kind, words))
        return values if count > 1 else values[0]

    def shown(value: Any) -> list[str]:
        return [AUTO] if value is None else [str(each) for each in (value if count > 1 else (value,))]

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1 if count == 1 else (1, count),
        metavar=f"{AUTO}|{metavar}",
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=shown,
    )


def _none_for_auto(value: Any) -> Any:
    return None if value == AUTO else value


UNFILLED: Any = None  # the default of a setting that may be left to the data

if TYPE_CHECKING:
    AutoInt = int
    AutoFloat = float
    AutoRange = tuple[float, float]
else:
    AutoInt = Annotated[int | None, MARK, BeforeValidator(_none_for_auto), _flag("INT", _whole)]
    AutoFloat = Annotated[float | None, MARK, BeforeValidator(_none_for_auto), _flag("FLOAT", float)]
    AutoRange = Annotated[
        tuple[float, float] | None, MARK, BeforeValidator(_none_for_auto), _flag("FLOAT FLOAT", float, 2)
    ]


def automatic_keys(model: type[Settings], prefix: str = "") -> list[str]:
    """Dotted names of the settings that may be left to the data."""
    found = []
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if any(isinstance(mark, Mark) for mark in field.metadata):
            found.append(f"{prefix}{name}")
        elif isinstance(kind, type) and issubclass(kind, Settings):
            found += automatic_keys(kind, f"{prefix}{name}.")
    return found


def unfilled(settings: Settings) -> list[str]:
    """Dotted names of the settings that are left to the data and not filled yet."""
    values = flattened(settings.model_dump())
    return [key for key in automatic_keys(type(settings)) if values[key] is None]


def filled(settings: Model, values: Mapping[str, Any]) -> Model:
    """The settings with values for some by their dotted names, checked as those of a user are.

    Raises:
        SettingError: when a value is not right.
    """
    nested = settings.model_dump()
    for key, value in values.items():
        *groups, name = key.split(".")
        inner = nested
        for group in groups:
            inner = inner[group]
        inner[name] = value
    return type(settings)(**nested)

"""Settings by their dotted names: which are marked, given, changed, and what differs between two runs."""

from collections.abc import Mapping, Sequence, Set
from functools import reduce
from operator import getitem
from typing import Any

from mgd_ssl.settings import Automatic, Free, S, Settings, group_of, incomplete


def free_keys(model: type[Settings]) -> list[str]:
    """Dotted names of the settings and groups that may differ between the parts of one run."""
    return _marked(model, Free)


def automatic_keys(model: type[Settings]) -> list[str]:
    """Dotted names of the settings that follow from the data where nobody gives them."""
    return _marked(model, Automatic)


def _marked(model: type[Settings], kind: type, prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        if any(isinstance(mark, kind) for mark in field.metadata):
            found.append(f"{prefix}{name}")
        elif (group := group_of(field)) is not None:
            found += _marked(group, kind, f"{prefix}{name}.")
    return found


def given_keys(settings: Settings, prefix: str = "") -> set[str]:
    """Dotted names of the settings that were given, by a file, a flag or a keyword; the others have their defaults."""
    found = set()
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        found |= given_keys(value, f"{prefix}{name}.") if isinstance(value, Settings) else {f"{prefix}{name}"}
    return found


def with_given(settings: S, given: Set[str]) -> S:
    """The same settings, of whose automatic ones only those count as given that are named by their dotted names."""
    values = settings.model_dump()
    for key in set(automatic_keys(type(settings))) - given:
        *groups, name = key.split(".")
        del reduce(getitem, groups, values)[name]
    return type(settings)(**values)


def changed(settings: S, values: Mapping[str, Any]) -> S:
    """The settings with others in the place of some, by their dotted names; these count as given.

    Raises:
        SettingError: for values out of range.
    """
    whole = settings.model_dump()
    for key, value in values.items():
        *groups, name = key.split(".")
        reduce(getitem, groups, whole)[name] = value
    return with_given(type(settings)(**whole), given_keys(settings) | values.keys())


def value_of(settings: Settings, key: str) -> Any:
    """The value of a setting by its dotted name."""
    return reduce(getattr, key.split("."), settings)


def defaults(model: type[Settings]) -> dict[str, Any]:
    """All settings that have a default, nested, as they are saved."""
    with incomplete():
        return model().model_dump(mode="json")


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: dict[str, Any], new: dict[str, Any], free: Sequence[str] = ()) -> list[str]:
    """`key: old -> new` for every setting that changed, but for those (or their groups) that are free to."""
    old, new = flattened(old), flattened(new)
    return [
        f"{key}: {old.get(key, 'not yet a setting')} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == f or key.startswith(f"{f}.") for f in free)
    ]

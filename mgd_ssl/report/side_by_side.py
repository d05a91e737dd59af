"""Settings of runs side by side."""

from collections.abc import Sequence
from typing import Any

from mgd_ssl.setting_keys import flattened


def differing(columns: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """`(key, value of every run)` for the keys that are not the same in all."""
    return [(key, values) for key, values in side_by_side(columns) if len(set(values)) > 1]


def side_by_side(columns: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """`(key, value of every run)` for all keys of nested dictionaries."""
    flat = [flattened(column) for column in columns]
    keys = dict.fromkeys(key for column in flat for key in column)
    return [(key, [shown(column[key]) if key in column else "absent" for column in flat]) for key in keys]


def shown(value: object) -> str:
    """A setting as text."""
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else str(value)
